"""Metrics on disk: JSON lines, and TensorBoard events."""

import json
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping

from etils import epath

from fsa import folders
from fsa.training.monitor.tensorboard import Board

_LOG = logging.getLogger(__name__)

# Object storage cannot append to files: they are rewritten, but not for every entry.
_REWRITE_SECONDS = 30.0


class MetricsWriter:
    """Writes `metrics.jsonl`, and TensorBoard events in `tensorboard/`.

    A resumed run first drops the entries of steps that it will repeat, so each step has
    one entry, however often the run was killed. A file that is damaged is kept aside as
    `metrics.jsonl.damaged`, and its readable entries go on. In object storage the files
    are copies of local ones, made at every validation and at least every half minute.
    """

    def __init__(self, workdir: epath.PathLike, *, resume_step: int = 0):
        """Opens the files.

        Args:
          workdir: an existing folder.
          resume_step: the step to resume from; entries of later steps are dropped.

        Raises:
          OSError: if the files cannot be written; also of the other methods.
        """
        self._workdir = epath.Path(workdir)
        self._copies = "://" in os.fspath(workdir)
        self._scratch = tempfile.TemporaryDirectory() if self._copies else None
        local = pathlib.Path(self._scratch.name if self._copies else workdir)
        self._local, self._copied = local, time.monotonic()
        kept = _entries_until(self._workdir / "metrics.jsonl", resume_step)
        text = "".join(json.dumps(entry) + "\n" for entry in kept)
        folders.write_text(local / "metrics.jsonl", text)
        self._file = (local / "metrics.jsonl").open("a")
        self._board = Board(local / "tensorboard", resume_step=resume_step)

    def write(self, step: int, split: str, values: Mapping[str, float]):
        """Writes the scalars of one step.

        Args:
          step: number of updates made.
          split: "train" or "valid".
          values: scalars by name.
        """
        values = {name: float(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.write(step, f"{split}/{name}", value)
        # Validation is followed by a save, whose entries must be there by then.
        due = time.monotonic() - self._copied > _REWRITE_SECONDS
        if self._copies and (split == "valid" or due):
            self._board.flush()
            self._copy()

    def _copy(self):
        for path in self._local.rglob("*"):
            if path.is_file():
                target = self._workdir / path.relative_to(self._local)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        self._copied = time.monotonic()

    def close(self):
        """Flushes and closes the files."""
        self._file.close()
        self._board.close()
        if self._copies:
            self._copy()
            self._scratch.cleanup()


class NoMetrics:
    """Ignores metrics; the writer of all processes but the first."""

    def write(self, step: int, split: str, values: Mapping[str, float]):
        """Does nothing."""

    def close(self):
        """Does nothing."""


def _entries_until(path: epath.Path, step: int) -> list[dict]:
    """Returns the readable entries up to `step`.

    A last line that a kill cut off is dropped. If another one is damaged, the file is
    renamed first, and a line is logged.
    """
    if not path.exists():
        return []
    *lines, cut_off = path.read_bytes().split(b"\n")
    entries = [_entry(line) for line in lines]
    if None in entries:
        aside = path.parent / f"{path.name}.damaged"
        path.replace(aside)
        number = entries.index(None) + 1
        _LOG.warning(
            "%s, line %d: damaged; the file is kept as %s", path, number, aside
        )
    found = [entry for entry in [*entries, _entry(cut_off)] if entry]
    return [entry for entry in found if entry["step"] <= step]


def _entry(line: bytes) -> dict | None:
    """Returns the entry of a line, or None if it holds none."""
    try:
        entry = json.loads(line)
        return entry if isinstance(entry["step"], int) and entry["split"] else None
    except (ValueError, TypeError, KeyError):
        return None


def read_metrics(workdir: epath.PathLike, split: str) -> list[dict]:
    """Returns the entries of a split, in order of steps."""
    path = epath.Path(workdir) / "metrics.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [entry for entry in entries if entry["split"] == split]
