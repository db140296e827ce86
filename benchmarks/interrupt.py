"""Interrupts training by Ctrl-C many times, and checks how the run ends.

`python benchmarks/interrupt.py --times=40` trains a small reward model twice: once
undisturbed, and once interrupted at random moments, the first of them while Python
starts, and resumed by the same command each time. Every interruption must end with 130,
one line and no traceback, and both runs with the same bits.
"""

import collections
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks.survive import FIELDS, REPOSITORY, reached, sound
from fsa.training.monitor.metrics import read_metrics

INTERRUPTED = 130
# Seconds to the earliest Ctrl-C; before, Python has not read a line of fsa.
EARLIEST = 0.2
_SIZES = {"steps": 4000, "steps_per_call": 10, "validate_every": 100}


def start(workdir: pathlib.Path) -> subprocess.Popen:
    """Starts or resumes training; its output is appended to a file beside the run."""
    fields = FIELDS | {f"train.{name}": value for name, value in _SIZES.items()}
    own = [f"--config.{name}={value}" for name, value in fields.items()]
    with open(f"{workdir}.log", "a") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "fsa", "train", f"--workdir={workdir}"),
                *("--config=experiments/synthetic/two_types.py:np-btl", *own),
            ],
            cwd=REPOSITORY,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=log,
            stderr=log,
            # Jobs in the background of a script ignore Ctrl-C, and so would this one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def interrupt_once(workdir: pathlib.Path, seconds: float, steps: int) -> str | None:
    """Starts the run and interrupts it.

    Args:
      workdir: the run.
      seconds: time of the interruption, unless the run has made its steps before.
      steps: number of steps that it may make.

    Returns:
      The last line that it wrote; None if Python was interrupted before it had read a
      line of fsa, as happens on a busy machine.

    Raises:
      AssertionError: unless it ends with 130 and without a traceback.
    """
    log = pathlib.Path(f"{workdir}.log")
    before = log.stat().st_size if log.exists() else 0
    end, last_step = time.monotonic() + seconds, reached(workdir) + steps
    process = start(workdir)
    while time.monotonic() < end and reached(workdir) < last_step:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=120)
    written = log.read_bytes()[before:].decode()
    if code == -signal.SIGINT and "/fsa/" not in written:
        return None
    assert code == INTERRUPTED, f"exit code {code} after {seconds:.2f} s: {written}"
    assert "Traceback" not in written and "Error" not in written, written
    *_, last = written.splitlines()
    assert last.startswith("interrupted"), written
    return last


def interrupt(folder: pathlib.Path, times: int, seed: int = 0) -> dict[str, int]:
    """Interrupts a run many times, and compares its end with an undisturbed one.

    Args:
      folder: an existing folder for both runs.
      times: number of interruptions.
      seed: seed of the moments, whose logarithms are uniform between `EARLIEST` and
        half as long again as the run takes to its first steps.

    Returns:
      How often the run said what, by its line without the numbers.

    Raises:
      AssertionError: as `interrupt_once`, or if the runs differ in a bit.
    """
    undisturbed, interrupted = folder / "undisturbed", folder / "interrupted"
    begin = time.monotonic()
    process = start(undisturbed)
    while not reached(undisturbed):
        assert process.poll() is None, f"see {undisturbed}.log"
        time.sleep(0.01)
    latest = 1.5 * (time.monotonic() - begin)
    assert process.wait() == 0, f"see {undisturbed}.log"
    rng = random.Random(seed)
    said = collections.Counter()
    while said.total() < times:
        seconds = math.exp(rng.uniform(math.log(EARLIEST), math.log(latest)))
        # So that it is not complete before the last interruption.
        line = interrupt_once(interrupted, seconds, _SIZES["steps"] // (times + 2))
        if line is None:
            continue
        said["".join(c for c in line if not c.isdigit())] += 1
        print(f"after at most {seconds:.2f} s: {line}", flush=True)
    assert start(interrupted).wait() == 0, f"see {interrupted}.log"
    (step, items), (wanted_step, wanted) = sound(interrupted), sound(undisturbed)
    assert step == wanted_step == _SIZES["steps"]
    jax.tree.map(np.testing.assert_array_equal, items, wanted)
    for split in ("train", "valid"):
        found, expected = (
            [(entry["step"], entry.get("loss")) for entry in read_metrics(run, split)]
            for run in (interrupted, undisturbed)
        )
        assert found == expected
    return dict(said)


def main(argv):
    """Interrupts, and prints what the run said."""
    del argv
    logging.set_verbosity(logging.ERROR)
    folder = pathlib.Path(flags.FLAGS.workdir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    said = interrupt(folder, flags.FLAGS.times, flags.FLAGS.seed)
    for line, count in said.items():
        print(f"{count} times: {line}")
    print("The runs ended with the same bits.")


if __name__ == "__main__":
    flags.DEFINE_integer("times", 40, "Number of interruptions.", lower_bound=1)
    flags.DEFINE_string("workdir", "runs/interrupt", "Folder for both runs.")
    flags.DEFINE_integer("seed", 0, "Seed of the moments.")
    app.run(main)
