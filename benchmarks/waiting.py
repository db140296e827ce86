"""Times what a user waits for: help, a ranking and the first steered texts.

    python benchmarks/waiting.py [--before=CHECKOUT] [--repeats=3]

It needs the runs of `make demo` and `make demo-policy` in each checkout, and copies
them. "cold" is the first call on a run whose compiled programs were removed, "warm" a
call after it, with other numbers of choices, options and prompts. With `--before`,
another checkout takes turns with this one. Prints medians in seconds, of the wall clock
and of all processors.
"""

import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parents[1]

_BEFORE = flags.DEFINE_string("before", None, "Another checkout.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Calls of each kind.", 1)

_CHOICES = [
    ["it looks totally great .", "it remains great ."],
    ["it feels super clumsy !", "it appears clumsy ."],
    ["this sounds notably strong !", "it appears strong ."],
]
_PROMPTS = ["describe the bakery :", "describe the museum :", "describe the park :"]
_MAIN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from fsa.commands.main import"
_MAIN += " main; sys.exit(main())"


def _write(path: pathlib.Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _lines(folder: pathlib.Path, run: pathlib.Path, size: int) -> list[str]:
    """Returns the command line of a ranking, or of texts, for `size` of everything."""
    context, other = folder / "context.jsonl", folder / "other.jsonl"
    if run.name == "demo":
        choices = [{"chosen": [0.9], "rejected": [0.6]}] * size
        options = [{"option": [0.1 * (i + 1)]} for i in range(size + 1)]
        given = [f"--options={_write(other, options)}"]
    else:
        prompt = _PROMPTS[0]
        choices = [
            {"prompt": prompt, "chosen": a, "rejected": b} for a, b in _CHOICES[:size]
        ]
        rows = [{"prompt": prompt} for prompt in _PROMPTS[:size]]
        given = [f"--prompts={_write(other, rows)}", f"--max_new_tokens={30 + size}"]
    command = "predict" if run.name == "demo" else "steer"
    context = f"--context={_write(context, choices)}"
    return [command, f"--workdir={run}", context, *given]


def _seconds(checkout: pathlib.Path, line: list[str]) -> tuple[float, float]:
    """Runs a command line of fsa; returns its wall and processor time."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", _MAIN, str(checkout), *line],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    wall, now = (
        time.perf_counter() - begin,
        resource.getrusage(resource.RUSAGE_CHILDREN),
    )
    used = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
    return wall, used


def _measure(checkout: pathlib.Path, folder: pathlib.Path) -> dict[str, tuple]:
    """Times each kind of call once."""
    os.chdir(checkout)  # Runs of older versions name their language model from here.
    found = {"fsa train --help": _seconds(checkout, ["train", "--help"])}
    for name in ("demo", "demo-policy"):
        run = folder / name
        shutil.copytree(checkout / "runs" / name, run)
        shutil.rmtree(run / "compiled", ignore_errors=True)
        first, second = (_lines(folder, run, size) for size in (3, 2))
        found[f"fsa {first[0]}, cold"] = _seconds(checkout, first)
        found[f"fsa {first[0]}, warm"] = _seconds(checkout, second)
    return found


def main(argv):
    """Measures both checkouts in turn, and prints a table."""
    del argv
    checkouts = {"after": ROOT}
    if _BEFORE.value:
        checkouts = {"before": pathlib.Path(_BEFORE.value).resolve(), **checkouts}
    measured = {}
    for _ in range(_REPEATS.value):
        for name, checkout in checkouts.items():
            with tempfile.TemporaryDirectory() as folder:
                for call, times in _measure(checkout, pathlib.Path(folder)).items():
                    measured.setdefault((call, name), []).append(times)
    print("| call | checkout | wall, s | processors, s |\n|---|---|---|---|")
    for (call, name), times in sorted(measured.items(), key=lambda item: item[0][0]):
        wall, used = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {call} | {name} | {wall:.1f} | {used:.1f} |")


if __name__ == "__main__":
    app.run(main)
