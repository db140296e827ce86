"""Holds a run directory for one training at a time, and refuses folders of others.

Two trainings in one directory would delete each other's checkpoints. The first process
of a run holds a lock (flock) on the file `train.lock` for as long as it trains; the
kernel releases it when the process dies, however that happens, so no lock is left over.
NFS carries such locks between machines, and gives up those of a machine that died after
a minute or two. Object storage has no locks.
"""

import contextlib
import errno
import fcntl
import fnmatch
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from typing import TextIO

from etils import epath

from fsa import folders
from fsa.errors import InputError
from fsa.parallel import processes
from fsa.training import run_data

_LOG = logging.getLogger(__name__)

_NAME = "train.lock"
# What a run or a sweep leaves that was ended before it had a config.
_OWN = (_NAME, "run.json", "config.json.draft", "compiled", "lock", "log.txt")
# What a write leaves that was killed: of `fsa.fit`'s dataset, or of a file.
_DRAFTS = (".data.*", ".*.draft")
# What launchers write into the folder of a run, and file systems into a new one.
_LAUNCHERS = ("*.log", "*.out", "*.err", "slurm-*", "lost+found", ".nfs*")
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def hold(workdir: epath.Path) -> Iterator[None]:
    """Makes a run directory if it is missing, and holds it while the body runs.

    Other commands only read a run, and may do so meanwhile. All processes of the run
    must call this.

    Args:
      workdir: the run directory; in object storage nothing is held.

    Raises:
      InputError: if the directory is none of a run, another process trains there, or it
        cannot be written.
    """
    with contextlib.ExitStack() as at_end:
        processes.on_first(lambda: at_end.enter_context(_held(workdir)))
        yield


@contextlib.contextmanager
def _held(workdir: epath.Path) -> Iterator[None]:
    """Holds a run directory for this process."""
    refuse_foreign(workdir)
    if "://" in os.fspath(workdir):
        yield
        return
    new = folders.missing(workdir)
    with contextlib.ExitStack() as at_end:
        try:
            folders.try_to_write(workdir)
            workdir.mkdir(parents=True, exist_ok=True)
            file = at_end.enter_context(_lock(workdir))
        except OSError as error:
            fix = "choose a folder that you may write to, on a disk with free space"
            what = f"`workdir`={workdir}"
            raise folders.cannot_write(what, error, fix) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            if not (workdir / "config.json").exists():
                # Nothing is left of a training that was refused.
                if new:
                    shutil.rmtree(workdir / "compiled", ignore_errors=True)
                folders.remove_empty(new)


def refuse_foreign(workdir: epath.Path) -> None:
    """Raises InputError if a folder has files, and is no run directory.

    Files of launchers and desktops, and hidden ones of no size, do not count.
    """
    if (workdir / "config.json").exists() or not workdir.exists():
        return
    if not workdir.is_dir():
        raise InputError(f"`workdir`={workdir}: is a file; name a folder")
    if (workdir / "store.json").exists():
        raise InputError(
            f"`workdir`={workdir}: is a dataset; name another folder for the run"
        )
    foreign = sorted(path.name for path in workdir.iterdir() if not _is_ours(path))
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise InputError(
            f"`workdir`={workdir}: is not empty and has no run (found {foreign[0]}"
            f"{more}); name a new folder, or an empty one"
        )


def _is_ours(path: epath.Path) -> bool:
    """Returns whether a file or folder may be in a directory that has no run yet."""
    patterns = (*_OWN, *_DRAFTS, *_LAUNCHERS)
    if any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns):
        return True
    if folders.is_of_desktop(path.name):
        return True
    if path.name == run_data.FILE:
        return run_data.is_record(path)
    if path.name == "data":  # `fsa.fit` writes it first.
        return (path / "store.json").exists() or all(
            folders.is_of_desktop(file.name) for file in path.iterdir()
        )
    hidden = path.name.startswith(".") and path.is_file()
    return hidden and not path.stat().length


@contextlib.contextmanager
def _lock(workdir: epath.Path) -> Iterator[TextIO]:
    """Locks a run directory; yields the file that is locked."""
    path = os.fspath(workdir / _NAME)
    while True:
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"`workdir`={workdir}: {_holder(file)} trains there; wait for it "
                    "or end it, or use another `workdir`"
                ) from error
            except OSError as error:
                if error.errno not in _WITHOUT_LOCKS:
                    raise
                _LOG.warning("%s: this disk has no locks; train once at a time", path)
            if not _is_at(file, path):
                continue  # The one before removed its file since it was opened.
            file.truncate(0)
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
            file.flush()
            yield file
            return


def _is_at(file: TextIO, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(file: TextIO) -> str:
    """Names the process that holds a lock, by what it wrote into the file."""
    try:
        file.seek(0)
        known = json.load(file)
        return f"process {known['pid']} on {known['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
