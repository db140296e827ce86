"""Where this copy of fsa comes from, for hints that work as they are printed.

fsa is on no package index, so its extras are installed from where fsa itself was
installed from: a checkout, or a wheel.
"""

import importlib.metadata
import json
import os
import pathlib
import shlex
import shutil
import sys
import urllib.parse
import urllib.request

_PACKAGE = pathlib.Path(__file__).resolve().parent


def command_of(extra: str) -> str:
    """Returns the command that adds an extra of fsa to this environment.

    It names the checkout or wheel that fsa was installed from, if that is still there;
    otherwise the checkout in which it must be run.
    """
    source, editable = _source()
    if source is None:
        return f"{_pip()} install '.[{extra}]' in the checkout of fsa"
    place = "." if source == pathlib.Path.cwd() else str(source)
    what = shlex.quote(f"{place}[{extra}]")
    return f"{_pip()} install {'-e ' if editable else ''}{what}"


def _source() -> tuple[pathlib.Path | None, bool]:
    """Returns what fsa was installed from, if it is there, and whether it is in use."""
    if (_PACKAGE.parent / "pyproject.toml").is_file():
        return _PACKAGE.parent, True
    try:
        # PEP 610: what pip was given.
        record = importlib.metadata.distribution("fsa").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        record = None
    url = urllib.parse.urlsplit(json.loads(record or "{}").get("url", ""))
    path = pathlib.Path(urllib.request.url2pathname(url.path))
    found = url.scheme == "file" and path.exists()
    return (path if found else None), False


def _pip() -> str:
    """Returns the name of this environment's pip."""
    folder = pathlib.Path(sys.executable).parent
    found = shutil.which("pip")
    if found and os.path.samefile(pathlib.Path(found).parent, folder):
        return "pip"
    return f"{shlex.quote(sys.executable)} -m pip"
