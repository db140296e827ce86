"""kill -9 at random moments, and the run ends with the same bits.

A run of a reward model, or of a policy, is killed while it starts, while it trains and
while it saves; the same command goes on each time.
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

import jax
import numpy as np
import policies
import pytest

from benchmarks.survive import sound
from fsa.training.monitor.metrics import read_metrics

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# In a save: before Orbax commits it, and before the manifest seals it.
STARTS, TRAINS, COMMITS, SEALS = "starts", "trains", "commits", "seals"
# Metrics that no two runs share.
TIMED = re.compile("_per_second$|^step_seconds|^host_wait$|^peak_memory|^mfu$")
KILLS = [
    *(STARTS, TRAINS, COMMITS, SEALS, TRAINS),
    *(COMMITS, STARTS, SEALS, TRAINS, COMMITS),
]


@dataclasses.dataclass
class Case:
    """A run that is killed.

    Attributes:
      flags: makes its command line, but for --workdir, given a folder for its inputs.
      steps: of the run.
      per_call: steps of a call.
      every: steps between saves.
      num_devices: on which it runs.
      kills: in what states it is killed.
    """

    flags: Callable[[pathlib.Path], list[str]]
    steps: int
    per_call: int
    every: int
    num_devices: int
    kills: list[str]


def reward_flags(folder):
    del folder
    fields = {
        "task.max_context": 2,
        "task.num_targets": 3,
        "model.hidden": 8,
        "model.latent_dim": 2,
        "objective.num_samples": 2,
        "train.batch_size": 8,
        "train.average_decay": 0.9,
        "eval.num_context": (0, 2),
        "eval.num_targets": 3,
        "eval.valid_users": 16,
        "eval.num_samples": 2,
    }
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
    """The command as anybody would give it; returns the process."""
    sizes = {
        "steps": case.steps,
        "steps_per_call": case.per_call,
        "validate_every": case.every,
    }
    own = [f"--config.train.{name}={value}" for name, value in sizes.items()]
    environment = dict(os.environ)
    devices = f"--xla_force_host_platform_device_count={case.num_devices}"
    environment["XLA_FLAGS"] = devices
    # So that coming back is quick; the cache is the run's own.
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "launch.train", f"--workdir={workdir}"),
                *(*flags, *own),
            ],
            cwd=REPOSITORY,
            env=environment,
            stdout=log,
            stderr=log,
        )


def step_reached(workdir):
    """The last step that the metrics tell of; 0 before the first."""
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["step"]
    except (OSError, IndexError, ValueError):
        return 0


def saving(workdir):
    """What a save is about to do: COMMITS, SEALS or None."""
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
    """Which file the metrics are in, or None."""
    try:
        return (workdir / "metrics.jsonl").stat().st_ino
    except OSError:
        return None


def kill(process, workdir, kind, when, rng, startup, before):
    """Kills a process in the wanted state, from step `when` on.

    `before` is what `written` said before it was started.

    Returns:
      In what state it was.
    """

    def wait_until(condition):
        while not condition():
            assert process.poll() is None, "ended before it was killed"
            time.sleep(0.0002)

    def reached():
        # Until a run opens them, the metrics are those of the one before it.
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
    # What an earlier kill left is cleared away while a run starts.
    return STARTS if kind == STARTS else saving(workdir) or TRAINS


def _untimed(entry):
    # The first call of a process, which compiles, has no step times.
    return {name: x for name, x in entry.items() if not TIMED.search(name)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path, name):
    """Bit by bit: parameters, their average, the optimizer and the key."""
    case = CASES[name]
    flags = case.flags(tmp_path)
    begin = time.monotonic()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole, case, flags)
    while step_reached(whole) == 0:
        assert process.poll() is None, (tmp_path / "whole.log").read_text()
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
        f"{time.monotonic() - begin:.0f} s, of which the whole run {uninterrupted:.0f}"
    )
    assert states[COMMITS] + states[SEALS] >= len(case.kills) * 3 // 10
    assert "Traceback" not in log
    assert log.count("Resuming from step") >= len(case.kills) - case.kills.count(STARTS)

    (step, items), (wanted_step, wanted) = sound(killed), sound(whole)
    assert step == wanted_step == case.steps
    assert jax.tree.structure(items) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, items, wanted)
    for split, every in (("train", case.per_call), ("valid", case.every)):
        found, same = read_metrics(killed, split), read_metrics(whole, split)
        assert [e["step"] for e in found] == list(range(every, case.steps + 1, every))
        for a, b in zip(found, same, strict=True):
            assert _untimed(a) == _untimed(b)
