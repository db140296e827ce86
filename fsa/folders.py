"""Folders and files that are written completely or not at all."""

import contextlib
import errno
import fnmatch
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from etils import epath

from fsa.errors import InputError

_LOG = logging.getLogger(__name__)

# What desktops put into any folder that somebody looks at.
_OF_DESKTOPS = (".DS_Store", "._*", "Thumbs.db", "desktop.ini")
_REFUSALS_IN_TEXTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_REFUSALS = (
    *_REFUSALS_IN_TEXTS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENAMETOOLONG,
)


@contextlib.contextmanager
def complete_or_absent(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder that takes the place of `folder` at the end.

    It is made beside its place, thus on the same disk, and deleted if anything fails:
    what was there before is kept. A link to a folder stays one.

    Raises:
      InputError: if something cannot be written.
    """
    folder = pathlib.Path(os.path.realpath(folder))  # The one that a link leads to.
    with scratch_beside(folder) as beside:
        new = beside / "new"
        new.mkdir()
        yield new
        _exchange(folder, new, beside / "old")


@contextlib.contextmanager
def scratch_beside(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder on the disk of `folder`, and deletes it at the end.

    Raises:
      InputError: if something cannot be written.
    """
    folder = pathlib.Path(os.path.realpath(folder))
    made = missing(folder.parent)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{folder.name}."
        ) as name:
            yield pathlib.Path(name)
    except Exception as error:
        remove_empty(made)
        if isinstance(error, OSError) or refusal(error):
            raise cannot_write(folder, error, "choose another folder") from error
        raise


def _exchange(folder: pathlib.Path, new: pathlib.Path, old: pathlib.Path) -> None:
    """Moves a folder to `old`, if it is there, and `new` in its place, or neither."""
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except BaseException:
        if old.exists() and new.exists():
            _put_back(old, folder)
        raise


def _put_back(old: pathlib.Path, folder: pathlib.Path) -> None:
    """Moves a folder back to its place, or beside it if that was taken meanwhile."""
    try:
        os.replace(old, folder)
    except OSError:
        # Beside it, under a name that is free and takes no room on a full disk.
        kept = folder.with_name(f"{old.parent.name.lstrip('.')}.old")
        os.replace(old, kept)
        _LOG.warning("%s: was taken meanwhile; what was there is now %s", folder, kept)


@contextlib.contextmanager
def whole_file(path: epath.PathLike) -> Iterator[BinaryIO]:
    """Yields an open file that takes the place of the file `path` at the end.

    It is written beside its place, and deleted if anything fails: what was there before
    is kept. A device or pipe, such as /dev/stdout, is written in place.

    Args:
      path: a path on a disk or in object storage; its folder is made.

    Raises:
      InputError: if something cannot be written.
    """
    path = epath.Path(path)
    if "://" not in os.fspath(path):
        path = epath.Path(os.path.realpath(path))  # The file that a link leads to.
    draft = path.parent / f".{path.name}.{os.getpid()}.draft"
    if is_special(path):
        draft = path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            yield file
        if draft != path:
            draft.replace(path)
    except BaseException as error:
        if draft != path:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error, "choose another place") from error
        raise


def share(path: pathlib.Path) -> None:
    """Gives a file the permissions of any new file; some libraries give it to one user.

    Engines that serve a model often run as another user.
    """
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a text as UTF-8, see `whole_file`."""
    with whole_file(path) as file:
        file.write(text.encode())


def is_of_desktop(name: str) -> bool:
    """Returns whether a file is one that a desktop made, such as .DS_Store."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in _OF_DESKTOPS)


def is_special(path: epath.PathLike) -> bool:
    """Returns whether a path is a device or pipe, which must not be replaced."""
    # `epath.Path.is_file` is true for these.
    if "://" in os.fspath(path) or not os.path.exists(path):
        return False
    return not os.path.isfile(path) and not os.path.isdir(path)


def try_to_write(folder: epath.PathLike, name: str = "") -> None:
    """Tries that a folder can be made, and files written in it; leaves it as it was.

    Called before long work, whose result is to be written there.

    Args:
      folder: the folder.
      name: of a file that is to be written there; names can be too long.

    Raises:
      OSError: if it cannot be made or written.
    """
    if "://" in os.fspath(folder):
        return
    new = missing(folder)
    try:
        os.makedirs(folder, exist_ok=True)
        # Its name is as long as that of the draft of `whole_file`.
        with tempfile.NamedTemporaryFile(
            dir=folder, prefix=f".{name}.", suffix=".draft"
        ) as file:
            file.write(b"x")
            file.flush()
    finally:
        remove_empty(new)


def check_writable(
    folder: epath.PathLike,
    fix: str = "choose another folder",
    *,
    what: epath.PathLike | None = None,
    name: str = "",
) -> None:
    """Raises InputError unless `try_to_write` succeeds.

    Args:
      folder: the folder.
      fix: what the user can do, with which the message ends.
      what: what the message begins with; by default the folder.
      name: name of a file that is to be written there.
    """
    try:
        try_to_write(folder, name)
    except OSError as error:
        raise cannot_write(what or folder, error, fix) from error


def missing(folder: epath.PathLike) -> list[pathlib.Path]:
    """Returns the folders that making a folder would make, the innermost first."""
    path = pathlib.Path(os.path.abspath(folder))
    return [each for each in (path, *path.parents) if not os.path.lexists(each)]


def remove_empty(paths: list[pathlib.Path]) -> None:
    """Removes those of some folders, the innermost first, that are there and empty."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.rmdir()


def refusal(error: BaseException | None) -> str | None:
    """Returns why a disk refused something, if that is what an error comes from.

    Libraries raise their own errors, whose texts hold what the system said.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            file = f"{error.filename}: " if error.filename else ""
            return f"{file}{error.strerror}"
        told = [os.strerror(number) for number in _REFUSALS_IN_TEXTS]
        if found := next((text for text in told if text in str(error)), None):
            return found
        error = error.__cause__
    return None


def cannot_write(path: epath.PathLike, error: Exception, fix: str) -> InputError:
    """Returns the error for what the system refused to write, in one line."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    else:
        reason = refusal(error)
    return InputError(f"{os.fspath(path)}: cannot be written ({reason}); {fix}")
