"""Files that are written completely or not at all."""

import os
from concurrent import futures

import pytest

from fsa import folders
from fsa.errors import InputError


def test_a_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with folders.whole_file(path) as file:
        file.write(b"after")
        file.flush()
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left")])
def test_a_file_that_fails_leaves_what_was_there(tmp_path, error):
    """A full disk is told as wrong input, with the file and the reason."""
    path = tmp_path / "a.txt"
    path.write_text("before")
    wanted = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted) as raised, folders.whole_file(path) as file:
        file.write(b"half")
        raise error
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]
    if wanted is InputError:
        assert str(path) in str(raised.value) and "No space left" in str(raised.value)


def write_folder(path, text):
    with folders.complete_or_absent(path) as new:
        (new / "a.txt").write_text(text)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_folder_whose_replacement_fails_is_put_back(tmp_path, monkeypatch, error):
    """Once the old one was moved away, and the new one could not be moved there."""
    place, replace = tmp_path / "data", os.replace
    write_folder(place, "before")

    def failing(source, target):
        if os.path.basename(source) == "new":
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(InputError if error is OSError else error):
        write_folder(place, "after")
    assert (place / "a.txt").read_text() == "before"
    assert os.listdir(tmp_path) == ["data"]


def test_a_folder_whose_place_was_taken_meanwhile_is_kept_beside(
    tmp_path, monkeypatch, caplog
):
    place, replace = tmp_path / "data", os.replace
    write_folder(place, "before")

    def slow(source, target):
        if os.path.basename(source) == "new":
            place.mkdir()
            (place / "b.txt").write_text("of somebody else")
        replace(source, target)

    monkeypatch.setattr(os, "replace", slow)
    with pytest.raises(InputError):
        write_folder(place, "after")
    assert os.listdir(place) == ["b.txt"]
    (kept,) = (path for path in tmp_path.iterdir() if path != place)
    assert (kept / "a.txt").read_text() == "before"
    assert str(kept) in caplog.text


def test_a_link_to_a_folder_stays_one(tmp_path):
    write_folder(tmp_path / "disk" / "target", "before")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "target")
    write_folder(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "target" / "a.txt").read_text() == "after"
    assert sorted(os.listdir(tmp_path / "disk")) == ["target"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "target").write_text("before")
    (tmp_path / "link").symlink_to("target")
    folders.write_text(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "after"


def test_a_pipe_is_written_in_place(tmp_path):
    """As are /dev/stdout and other devices: none of them is replaced by a file."""
    os.mkfifo(tmp_path / "pipe")
    with futures.ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        folders.write_text(tmp_path / "pipe", "text")
        assert read.result() == "text"
    assert (tmp_path / "pipe").is_fifo() and os.listdir(tmp_path) == ["pipe"]


def test_names_that_are_too_long_leave_nothing(tmp_path):
    long = "n" * 260
    with pytest.raises(OSError):
        folders.try_to_write(tmp_path / "a", long)
    with pytest.raises(InputError):
        write_folder(tmp_path / "a" / long, "text")
    assert os.listdir(tmp_path) == []


def test_a_folder_is_tried_and_left_as_it_was(tmp_path):
    folders.try_to_write(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []
    (tmp_path / "a").mkdir()
    folders.try_to_write(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == []
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "a", "/proc"):
        with pytest.raises(OSError):
            folders.try_to_write(place)
