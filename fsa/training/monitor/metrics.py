"""Where metrics go: JSON lines, and TensorBoard events written without TensorFlow."""

import json
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping

import tensorboardX
from etils import epath

# A bucket cannot append: its files are written anew, but not for every entry.
_REWRITE_SECONDS = 30.0


class MetricsWriter:
    """Writes `metrics.jsonl`, and TensorBoard events in `tensorboard/`.

    A resumed run first drops what it is about to do again, so that every step stands
    once however often the run was killed. In a bucket the files are copies of local
    ones, as of the last validation or half a minute ago.
    """

    def __init__(self, workdir: epath.PathLike, *, resume_step: int = 0):
        """Opens the files.

        Args:
          workdir: an existing folder.
          resume_step: entries of later steps are dropped.
        """
        self._workdir = epath.Path(workdir)
        self._bucket = "://" in os.fspath(workdir)
        self._scratch = tempfile.TemporaryDirectory() if self._bucket else None
        local = pathlib.Path(self._scratch.name if self._bucket else workdir)
        self._local, self._copied = local, time.monotonic()
        kept = _entries_until(self._workdir / "metrics.jsonl", resume_step)
        draft = local / "metrics.draft"
        draft.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        draft.replace(local / "metrics.jsonl")
        self._file = (local / "metrics.jsonl").open("a")
        self._board = tensorboardX.SummaryWriter(
            str(local / "tensorboard"),
            purge_step=resume_step + 1 if resume_step else None,
            # Apart from the time, of which tensorboardX takes whole seconds.
            filename_suffix=f".{resume_step}",
        )

    def write(self, step: int, split: str, values: Mapping[str, float]):
        """Writes scalars of one step.

        Args:
          step: number of updates made.
          split: "train" or "valid".
          values: by name.
        """
        values = {name: float(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)
        # A save follows validation, and does without what is not there by then.
        due = time.monotonic() - self._copied > _REWRITE_SECONDS
        if self._bucket and (split == "valid" or due):
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
        """Flushes and closes both."""
        self._file.close()
        self._board.close()
        if self._bucket:
            self._copy()
            self._scratch.cleanup()


class NoMetrics:
    """The writer of processes other than the first: none."""

    def write(self, step: int, split: str, values: Mapping[str, float]):
        """Does nothing."""

    def close(self):
        """Does nothing."""


def _entries_until(path: epath.Path, step: int) -> list[dict]:
    """The whole entries up to `step`; a line cut off by a kill is not one."""
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
    """The entries of a split, in order of steps."""
    path = epath.Path(workdir) / "metrics.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [entry for entry in entries if entry["split"] == split]
