"""Runs every command on a full disk and on one that cannot be written.

The disk is a small tmpfs, which takes root on Linux. On a full disk a command may write
some files before space runs out; it must then end in one line that begins with
"error:", exit with 2, and leave what was there before as it was.
"""

import contextlib
import pathlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks import refusal_fork
from benchmarks.malformed.case import RESUME, SIMULATED, line
from benchmarks.refusal_folder import Copy, changes

# Bytes that are left: none, a page, and what lets the longer outputs begin.
FREE = (0, 4096, 32 * 1024, 256 * 1024)
_MARGIN = 512 * 1024


class Write(NamedTuple):
    """A command that writes.

    Attributes:
      name: what it writes.
      line: the command and its flags.
      lost: paths that a sound folder lacks for it, such as the end of a run.
      updated: files that it may replace before it needs more space.
    """

    name: str
    line: tuple[str, ...]
    lost: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()


WRITES = (
    Write("prepare", line("prepare")),
    Write("prepare --overwrite", (*line("prepare", out="data/people"), "--overwrite")),
    Write("prepare --tables_out", line("prepare", tables_out="tables")),
    Write("prepare --samples", line("prepare", SIMULATED)),
    Write("train", line("train")),
    # A resumed run records where its data are now, and its steps until it saves.
    Write(
        "train, resumed",
        line("train", RESUME),
        lost=("runs/reward_model/checkpoints/8",),
        updated=("runs/reward_model/config.json", "runs/reward_model/metrics.jsonl"),
    ),
    Write("train a policy", line("train", config="policy.py")),
    Write("train a language model", line("train", config="language.py")),
    Write("evaluate", line("evaluate"), ("runs/reward_model/evaluation.json",)),
    Write(
        "evaluate --compare",
        ("evaluate", "--compare", "runs/reward_model", "--out=compared.png"),
    ),
    Write("predict --out", line("predict")),
    Write("sample --out", line("sample")),
    Write("steer --out", line("steer")),
    Write("steer --export", line("steer", export="mine", prompts=None, out=None)),
    Write("probe --out", line("probe")),
    Write("compile --out", line("compile")),
    Write("compile --text", line("compile", text="step.txt", out=None)),
    Write("sweep", line("sweep")),
)
# Commands that only read, and must do so from a disk that cannot be written.
READS = (
    ("predict", line("predict", out=None)),
    ("steer", line("steer", out=None)),
    ("probe", line("probe", out=None)),
    ("compile", line("compile", out=None)),
    ("train --help_fields", ("train", "--config=mine.py", "--help_fields")),
)


def write_faults(
    write: Write, finished: refusal_fork.Finished, changed: list[str], may_fit: bool
) -> list[str]:
    """Returns what is wrong with the end of a command that had no place to write.

    Args:
      write: the command.
      finished: how it ended.
      changed: what it changed on the disk; new files may be left by a run.
      may_fit: whether the space may have been enough.
    """
    updated = {f"changed {name}" for name in write.updated}
    found = [each for each in changed if not each.startswith("new ")]
    found = [each for each in found if each not in updated]
    if finished.code == 0 and may_fit:
        return []
    if (
        finished.code == 1
        and write.name == "sweep"
        and "failed: " in (finished.out + finished.err)
    ):
        return found  # A run had no place, and the sweep names it.
    if finished.code != 2:
        found.append(f"exit code {finished.code}")
    if "Traceback" in finished.err:
        found.append("a traceback")
    *_, last = finished.err.splitlines() or [""]
    if not last.startswith("error: "):
        found.append('the last line does not begin with "error: "')
    if finished.err.count("error: ") > 1:
        found.append("several errors")
    return found


@contextlib.contextmanager
def small_disk(place: pathlib.Path, size: int) -> Iterator[pathlib.Path]:
    """Mounts a tmpfs of some bytes at a folder, and unmounts it at the end."""
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", place]
    subprocess.run(mount, check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: pathlib.Path, free: int) -> None:
    """Writes a file that leaves some bytes free."""
    left = shutil.disk_usage(disk).free - free
    with (disk / "filler").open("wb") as file:
        file.write(bytes(left))


def full(sound: pathlib.Path, used: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """Yields (command and free bytes, what was wrong) on disks that are nearly full."""
    size = _size(sound)
    for write in WRITES:
        for free in FREE:
            with small_disk(used, size + _MARGIN) as disk:
                copy = _copy(sound, disk, write.lost)
                fill(disk, free)
                before = copy.contents()
                finished = refusal_fork.run(
                    copy.folder, write.line, shown=sound.parent / "shown", limit=120
                )
                changed = changes(before, copy.contents())
                wrong = write_faults(write, finished, changed, may_fit=free > 0)
            ended = "fitted" if finished.code == 0 else "refused"
            yield f"{write.name}, {free:,} bytes free: {ended}", _shown(wrong, finished)


def read_only(
    sound: pathlib.Path, used: pathlib.Path
) -> Iterator[tuple[str, list[str]]]:
    """Yields (command, what was wrong) on disks that cannot be written."""
    size = _size(sound)
    for write in WRITES:
        with small_disk(used, size + _MARGIN) as disk:
            copy = _copy(sound, disk, write.lost)
            finished, changed = _run_read_only(disk, copy, write.line, sound)
            wrong = write_faults(write, finished, changed, may_fit=False)
        yield f"{write.name}: refused", _shown(wrong, finished)
    for name, command in READS:
        with small_disk(used, size + _MARGIN) as disk:
            copy = _copy(sound, disk, ())
            finished, changed = _run_read_only(disk, copy, command, sound)
            wrong = [f"exit code {finished.code}"] if finished.code else []
        yield f"{name}: reads", _shown(wrong + changed, finished)


def _size(folder: pathlib.Path) -> int:
    """Returns the bytes of the blocks of a folder."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def _copy(sound: pathlib.Path, disk: pathlib.Path, lost: tuple[str, ...]) -> Copy:
    copy = Copy(sound, disk)
    for name in lost:
        path = copy.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return copy


def _run_read_only(disk, copy, command, sound):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    before = copy.contents()
    finished = refusal_fork.run(
        copy.folder, command, shown=sound.parent / "shown", limit=120
    )
    return finished, changes(before, copy.contents())


def _shown(wrong: list[str], finished: refusal_fork.Finished) -> list[str]:
    return [*wrong, finished.err[-1500:]] if wrong else []
