"""Runs that are killed (-9) at random moments end with the same bits as others.

A run of a reward model or of a policy is killed while it starts, while it trains and
while it saves, and is resumed by the same command each time.
`pytest -m slow -s tests/training/test_kill.py` also prints figures.
"""

import collections
import dataclasses
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable

import chex
import policies
import pytest

from benchmarks import survive
from benchmarks.survive import sound
from fsa.training.monitor.metrics import read_metrics

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# A save is killed before Orbax commits it, or before its manifest is written.
STARTS, TRAINS, COMMITS, SEALS = "starts", "trains", "commits", "seals"
# Metrics that differ between any two runs.
TIMED = re.compile("_per_second$|^step_seconds|^host_wait$|^peak_memory|^mfu$")
KILLS = [
    *(STARTS, TRAINS, COMMITS, SEALS, TRAINS),
    *(COMMITS, STARTS, SEALS, TRAINS, COMMITS),
]


@dataclasses.dataclass
class Case:
    """A run that is killed.

    Attributes:
      flags: makes its command line without --workdir, given a folder for its inputs.
      steps: number of steps of the run.
      per_call: steps of a call.
      every: steps between saves.
      num_devices: number of devices.
      kills: the states in which it is killed.
    """

    flags: Callable[[pathlib.Path], list[str]]
    steps: int
    per_call: int
    every: int
    num_devices: int
    kills: list[str]


def reward_flags(folder):
    del folder
    fields = {**survive.FIELDS, "train.average_decay": 0.9}
    given = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config=experiments/synthetic/two_types.py:np-btl", *given]


def policy_flags(folder):
    fields = {"train.average_decay": 0.9, "dpo.reward_steps": 100}
    return policies.flags(policies.write_all(folder), **fields)


CASES = {
    "reward model": Case(reward_flags, 2000, 10, 50, 1, KILLS),
    "reward model on 8 devices": Case(reward_flags, 2000, 10, 50, 8, KILLS),
    "policy": Case(policy_flags, 600, 5, 25, 1, KILLS[:5]),
}


def start(workdir, case, flags):
    """Starts the command line of a run; returns the process."""
    sizes = {
        "steps": case.steps,
        "steps_per_call": case.per_call,
        "validate_every": case.every,
    }
    own = [f"--config.train.{name}={value}" for name, value in sizes.items()]
    environment = dict(os.environ)
    devices = f"--xla_force_host_platform_device_count={case.num_devices}"
    environment["XLA_FLAGS"] = devices
    # So that a restart is quick; the cache is the run's own.
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "fsa", "train", f"--workdir={workdir}"),
                *(*flags, *own),
            ],
            cwd=REPOSITORY,
            env=environment,
            stdout=log,
            stderr=log,
        )


def step_reached(workdir):
    """The last step in the metrics; 0 before the first."""
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["step"]
    except (OSError, IndexError, ValueError):
        return 0


def saving(workdir):
    """The state of a save: COMMITS, SEALS, or None if nothing is being saved."""
    try:
        steps = list((workdir / "checkpoints").iterdir())
    except OSError:
        return None
    if any(".orbax-checkpoint-tmp" in step.name for step in steps):
        return COMMITS
    committed = [step for step in steps if step.name.isdigit()]
    sealed = all((step / "manifest.json").exists() for step in committed)
    return None if sealed else SEALS


def written(workdir):
    """The number of the file of the metrics, or None."""
    try:
        return (workdir / "metrics.jsonl").stat().st_ino
    except OSError:
        return None


def kill(process, workdir, kind, when, rng, startup, before):
    """Kills a process in the wanted state, from step `when` on.

    `before` is what `written` returned before the process was started.

    Returns:
      The state in which it was killed.
    """

    def wait_until(condition):
        while not condition():
            assert process.poll() is None, "ended before it was killed"
            time.sleep(0.0002)

    def reached():
        # Until a run opens the metrics, they are those of the run before it.
        return written(workdir) != before and step_reached(workdir) >= when

    if kind == STARTS:
        time.sleep(rng.uniform(0, startup))
    else:
        wait_until(reached)
        time.sleep(rng.uniform(0, 0.1))
    if kind in (COMMITS, SEALS):
        wait_until(lambda: saving(workdir) == kind)
    process.kill()
    process.wait()
    # While a run starts, it removes what an earlier kill left.
    return STARTS if kind == STARTS else saving(workdir) or TRAINS


def _untimed(entry):
    # The first call of a process, which compiles, has no step times.
    return {name: x for name, x in entry.items() if not TIMED.search(name)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path, name):
    """Bit by bit in parameters, their average, the optimizer and the key."""
    case = CASES[name]
    flags = case.flags(tmp_path)
    begin = time.monotonic()
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    process = start(undisturbed, case, flags)
    while step_reached(undisturbed) == 0:
        assert process.poll() is None, (tmp_path / "undisturbed.log").read_text()
        time.sleep(0.01)
    startup = time.monotonic() - begin
    assert process.wait() == 0
    uninterrupted = time.monotonic() - begin

    rng = random.Random(case.num_devices)
    moments = sorted(
        rng.sample(range(case.every, case.steps - 4 * case.every), len(case.kills))
    )
    states = collections.Counter()
    for kind, when in zip(case.kills, moments, strict=True):
        before = written(killed)
        process = start(killed, case, flags)
        states[kill(process, killed, kind, when, rng, startup, before)] += 1
    assert start(killed, case, flags).wait() == 0
    log = (tmp_path / "killed.log").read_text()
    print(
        f"\n{name}: killed {dict(states)}; "
        f"{log.count('saving was cut off')} unsealed steps discarded; "
        f"{time.monotonic() - begin:.0f} s, {uninterrupted:.0f} of them undisturbed"
    )
    assert states[COMMITS] + states[SEALS] >= len(case.kills) * 3 // 10
    assert "Traceback" not in log
    assert log.count("Resuming from step") >= len(case.kills) - case.kills.count(STARTS)

    (step, items), (wanted_step, wanted) = sound(killed), sound(undisturbed)
    assert step == wanted_step == case.steps
    chex.assert_trees_all_equal(items, wanted)
    for split, every in (("train", case.per_call), ("valid", case.every)):
        found, same = read_metrics(killed, split), read_metrics(undisturbed, split)
        assert [e["step"] for e in found] == list(range(every, case.steps + 1, every))
        for a, b in zip(found, same, strict=True):
            assert _untimed(a) == _untimed(b)
