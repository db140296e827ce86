"""The command that installs an extra works from where it is printed."""

import importlib.metadata
import json
import pathlib
import shlex
import sys

import pytest

from fsa import installation
from fsa.errors import missing_extra


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Makes this fsa one that pip has installed from something: `installed(path)`."""

    def install(source):
        record = (
            json.dumps({"url": source.as_uri(), "dir_info": {}}) if source else None
        )

        class Distribution:
            def read_text(self, name):
                assert name == "direct_url.json"
                return record

        package = tmp_path / "site-packages" / "fsa"
        monkeypatch.setattr(installation, "_PACKAGE", package)
        monkeypatch.setattr(
            importlib.metadata, "distribution", lambda _: Distribution()
        )

    return install


def parts():
    """The command as a shell reads it."""
    return shlex.split(installation.command_of("embed"))


def test_in_the_checkout_it_is_installed_in_place(monkeypatch):
    root = pathlib.Path(__file__).resolve().parents[1]
    monkeypatch.chdir(root)
    assert parts()[-3:] == ["install", "-e", ".[embed]"]
    monkeypatch.chdir(root.parent)
    assert parts()[-3:] == ["install", "-e", f"{root}[embed]"]


def test_a_copy_names_the_checkout_that_it_came_from(installed, tmp_path, monkeypatch):
    checkout = tmp_path / "my checkout"
    checkout.mkdir()
    installed(checkout)
    assert parts()[-2:] == ["install", f"{checkout}[embed]"]
    monkeypatch.chdir(checkout)
    assert parts()[-2:] == ["install", ".[embed]"]


def test_where_the_checkout_is_gone_the_hint_says_so(installed, tmp_path):
    for source in (tmp_path / "gone", None):
        installed(source)
        assert "in the checkout" in installation.command_of("embed")


def test_pip_is_that_of_this_environment(monkeypatch, tmp_path):
    (tmp_path / "pip").write_text("")
    (tmp_path / "pip").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert parts()[:3] == [sys.executable, "-m", "pip"]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert parts()[0] == "pip"


def test_the_error_has_the_command():
    message = str(missing_extra("embed", "this", ImportError("torch")))
    assert installation.command_of("embed") in message and "torch" in message
