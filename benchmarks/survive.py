"""Kills one of the processes of a run many times, and checks how the run ends.

`python benchmarks/survive.py --kills=20` trains a small NP-BTL on 2 processes, once
without and once with kills (-9) at random moments, every other one while a checkpoint
is being written. It prints how soon the other process ended and how many steps were
lost, and checks that both runs end with the same bits.
"""

import dataclasses
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from absl import app, flags, logging

from fsa.training.checkpoint import TRAINING, VARIABLES, Checkpoints

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# Fields of a reward model that is quick to train.
FIELDS = {
    "task.max_context": 2,
    "task.num_targets": 3,
    "model.hidden": 8,
    "model.latent_dim": 2,
    "objective.num_samples": 2,
    "train.batch_size": 8,
    "eval.num_context": (0, 2),
    "eval.num_targets": 3,
    "eval.valid_users": 16,
    "eval.num_samples": 2,
}


@dataclasses.dataclass
class Program:
    """A run of several processes.

    Attributes:
      command: the command line, without the flags that `start` adds.
      steps: number of steps of the run.
      every: steps between saves.
      heartbeat: seconds after which a silent process counts as dead.
      connect: seconds that a process waits for the others to start.
      num_processes: number of processes of the run.
      devices: number of devices of a process.
    """

    command: list[str]
    steps: int
    every: int
    heartbeat: int = 10
    connect: int = 60
    num_processes: int = 2
    devices: int = 1

    def start(self, workdir: pathlib.Path) -> list[subprocess.Popen]:
        """Starts the processes; appends their output to files beside the run."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        count = f"--xla_force_host_platform_device_count={self.devices}"
        given = os.environ.get("XLA_FLAGS", "")
        environment = {
            # So that a restart is quick.
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(REPOSITORY),
            "XLA_FLAGS": f"{given} {count}",
        }
        own = [
            f"--workdir={workdir}",
            f"--heartbeat_seconds={self.heartbeat}",
            f"--connect_seconds={self.connect}",
        ]
        if self.num_processes > 1:
            own.append(f"--coordinator=127.0.0.1:{port}")
            own.append(f"--num_processes={self.num_processes}")
        started = []
        for i in range(self.num_processes):
            which = [f"--process_id={i}"] if self.num_processes > 1 else []
            with open(f"{workdir}-{i}.log", "a") as log:
                command = [sys.executable, *self.command, *own, *which]
                started.append(
                    subprocess.Popen(
                        command,
                        cwd=REPOSITORY,
                        env=environment,
                        stdout=log,
                        stderr=log,
                    )
                )
        return started

    def run(self, workdir: pathlib.Path) -> list[int]:
        """Returns the exit codes of a run without kills."""
        return [process.wait() for process in self.start(workdir)]


def small_reward_model() -> Program:
    """Returns training of a small reward model by the command line."""
    steps, every = 120, 4
    sizes = {"steps": steps, "steps_per_call": 2, "validate_every": every}
    fields = FIELDS | {f"train.{name}": value for name, value in sizes.items()}
    return Program(
        [
            *("-m", "fsa", "train"),
            "--config=experiments/synthetic/two_types.py:np-btl",
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ],
        steps,
        every,
    )


def reached(workdir: pathlib.Path, split: str = "train") -> int:
    """Returns the last step in the metrics, 0 before the first."""
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return 0
    return max((e["step"] for e in entries if e["split"] == split), default=0)


def unfinished(workdir: pathlib.Path) -> set[int]:
    """Returns the steps that are being written and have no manifest yet."""
    found = set()
    try:
        for path in (workdir / "checkpoints").iterdir():
            step = path.name.split(".")[0]
            if step.isdigit() and not (path / "manifest.json").exists():
                found.add(int(step))
    except OSError:
        pass
    return found


def sound(workdir: pathlib.Path) -> tuple[int, dict]:
    """Returns the last sound step and its items; (0, {}) if there is none."""
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    step = checkpoints.latest_step
    items = {}
    if step is not None:
        like = {name: checkpoints.shapes(step, name) for name in (VARIABLES, TRAINING)}
        items = checkpoints.restore(step, like)
    checkpoints.close()
    return step or 0, items


@dataclasses.dataclass
class Kill:
    """The consequences of one kill.

    Attributes:
      process: number of the process that was killed.
      starting: whether it had not made a step since it was started.
      saving: whether a checkpoint was being written.
      step: the last step in the metrics.
      kept: step of the last sound checkpoint.
      ended_after: seconds until the last of the other processes had ended.
    """

    process: int
    starting: bool
    saving: bool
    step: int
    kept: int
    ended_after: float


def kill_one(
    program: Program, workdir: pathlib.Path, when: int, saving: bool, rng: random.Random
) -> Kill:
    """Starts a run, kills one process after step `when`, and waits for the others.

    Raises:
      AssertionError: if a process ends by itself, the others outlive the heartbeat, or
        more is lost than one interval and the steps made during the interrupted save.
    """
    before = reached(workdir)
    processes = program.start(workdir)

    def wait_until(condition):
        while not condition():
            assert all(p.poll() is None for p in processes), "ended before the kill"
            time.sleep(0.001)

    wait_until(lambda: reached(workdir) >= when)
    time.sleep(rng.uniform(0, 0.2))
    if saving:
        # A step that the kill before cut off may still be there.
        wait_until(lambda: reached(workdir) != before and unfinished(workdir))
    victim = rng.randrange(len(processes))
    processes[victim].kill()
    since = time.monotonic()
    starting = reached(workdir) == before
    codes = [process.wait() for process in processes]
    ended_after = time.monotonic() - since
    assert all(codes), f"a process ended without error: {codes}"
    # On a busy machine the others may notice late.
    limit = 2 * program.heartbeat + 5 + (program.connect if starting else 0)
    assert ended_after < limit, ended_after
    kept, _ = sound(workdir)
    # Older steps were about to be deleted.
    left = {step for step in unfinished(workdir) if step > kept}
    assert left <= {kept + program.every}, (left, kept)
    assert reached(workdir, "valid") <= kept + program.every * (1 + len(left))
    return Kill(victim, starting, bool(left), reached(workdir), kept, ended_after)


def survive(
    program: Program, folder: pathlib.Path, kills: int, seed: int
) -> list[Kill]:
    """Runs without and with kills; raises AssertionError if the ends differ."""
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    assert not any(program.run(undisturbed)), f"see {undisturbed}-0.log"
    rng = random.Random(seed)
    last = program.steps - 3 * program.every
    moments = sorted(rng.sample(range(program.every, last), kills))
    done = []
    for i, when in enumerate(moments):
        done.append(kill_one(program, killed, when, i % 2 == 0, rng))
        print(done[-1], flush=True)
    assert not any(program.run(killed)), f"see {killed}-0.log"
    (step, items), (wanted_step, wanted) = sound(killed), sound(undisturbed)
    assert step == wanted_step == program.steps
    jax.tree.map(np.testing.assert_array_equal, items, wanted)
    return done


def main(argv):
    """Runs, and prints a summary of the kills."""
    del argv
    logging.set_verbosity(logging.ERROR)
    folder = pathlib.Path(flags.FLAGS.workdir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    program = small_reward_model()
    done = survive(program, folder, flags.FLAGS.kills, flags.FLAGS.seed)
    lost = [kill.step - kill.kept for kill in done]
    ended = [kill.ended_after for kill in done]
    print(
        f"{len(done)} kills, {sum(kill.saving for kill in done)} with a save cut off, "
        f"{sum(kill.starting for kill in done)} before the first step; the "
        f"others ended after {np.median(ended):.1f} s, at most {max(ended):.1f} s; "
        f"steps lost: median {np.median(lost):.0f}, at most {max(lost)}, with a save "
        f"every {program.every}; the run ended with the same bits"
    )


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 20, "Number of kills.", lower_bound=1)
    flags.DEFINE_string("workdir", "runs/survive", "Folder for both runs.")
    flags.DEFINE_integer("seed", 0, "Seed of the moments.")
    app.run(main)
