"""Digests of files and folders, against hashlib."""

import hashlib
import json

import pytest

from fsa import digests

FILES = {"b.txt": b"second", "a/c.bin": b"\0\1", "a/b.txt": b"", "a.txt": b"first"}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    return tmp_path


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_of_files(folder):
    """By path, a folder's files before a file whose name continues the folder's."""
    names = ["a/b.txt", "a/c.bin", "a.txt", "b.txt"]
    found = digests.of_files(folder)
    assert list(found.items()) == [(name, sha256(FILES[name])) for name in names]
    assert digests.of_file(folder / "b.txt") == found["b.txt"]
    assert list(digests.of_files(folder, skip=lambda name: name == "b.txt")) == [
        "a/c.bin",
        "a.txt",
    ]


def test_of_folder_is_the_digest_of_names_and_contents(folder):
    by_name = {name: sha256(FILES[name]) for name in sorted(FILES, key=parts)}
    found = digests.of_folder(folder)
    assert found == sha256(json.dumps(by_name).encode())
    (folder / "b.txt").write_bytes(b"other")
    other_content = digests.of_folder(folder)
    (folder / "b.txt").write_bytes(FILES["b.txt"])
    assert digests.of_folder(folder) == found
    (folder / "b.txt").rename(folder / "c.txt")
    assert len({found, other_content, digests.of_folder(folder)}) == 3


def parts(name):
    return name.split("/")
