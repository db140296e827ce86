"""Metrics on disk: JSON lines, and TensorBoard events written without TensorFlow."""

import json
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping

import tensorboardX
from etils import epath

# Object storage cannot append to files: they are rewritten, but not for every entry.
_REWRITE_SECONDS = 30.0


class MetricsWriter:
    """Writes `metrics.jsonl`, and TensorBoard events in `tensorboard/`.

    A resumed run first drops the entries of steps that it will repeat, so each step has
    one entry, however often the run was killed. In object storage the files are copies
    of local ones, made at every validation and at least every half minute.
    """

    def __init__(self, workdir: epath.PathLike, *, resume_step: int = 0):
        """Opens the files.

        Args:
          workdir: an existing folder.
          resume_step: the step to resume from; entries of later steps are dropped.
        """
        self._workdir = epath.Path(workdir)
        self._copies = "://" in os.fspath(workdir)
        self._scratch = tempfile.TemporaryDirectory() if self._copies else None
        local = pathlib.Path(self._scratch.name if self._copies else workdir)
        self._local, self._copied = local, time.monotonic()
        kept = _entries_until(self._workdir / "metrics.jsonl", resume_step)
        draft = local / "metrics.draft"
        draft.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        draft.replace(local / "metrics.jsonl")
        self._file = (local / "metrics.jsonl").open("a")
        self._board = tensorboardX.SummaryWriter(
            str(local / "tensorboard"),
            purge_step=resume_step + 1 if resume_step else None,
            # Makes the name unique; tensorboardX adds the time in whole seconds only.
            filename_suffix=f".{resume_step}",
        )

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
            self._board.add_scalar(f"{split}/{name}", value, step)
        # Validation is followed by a save, whose entries must be there by then.
        due = time.monotonic() - self._copied > _REWRITE_SECONDS
        if self._copies and (split == "valid" or due):
            self._copy()

    def _copy(self):
        self._board.flush()
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
    """Returns the entries up to `step`; skips a line that a kill cut off."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry["step"] <= step:
            entries.append(entry)
    return entries


def read_metrics(workdir: epath.PathLike, split: str) -> list[dict]:
    """Returns the entries of a split, in order of steps."""
    path = epath.Path(workdir) / "metrics.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [entry for entry in entries if entry["split"] == split]
