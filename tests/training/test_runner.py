"""One device or eight, jit or pmap: the same numbers.

Eight virtual devices take a flag that XLA reads once, so this file is also a script
that runs with it, `python test_parallel.py FOLDER`, and prints the losses it saw.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import tiny_policy_config, write_all

from fsa.parallel.sharding import make_mesh
from fsa.recipes.runs import build
from fsa.training import reward_loss
from fsa.training.checkpoint import Checkpoints
from fsa.training.loop import train
from fsa.training.monitor.metrics import MetricsWriter
from fsa.training.runner import MeshRunner, PmapRunner
from fsa.training.step import init_state, make_optimizer

TESTS = pathlib.Path(__file__).resolve().parents[1]
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
STEPS, PER_CALL, SAVED = 48, 4, 24
POLICY_STEPS = 4


class Run:
    """A tiny reward model; every call of `losses` trains it anew."""

    def __init__(self, config, parts):
        self.task, self._loss_fn, self._optimizer, self._state = parts(config)
        self._given = {
            name: config["train"][name] for name in ("batch_size", "average_decay")
        }

    def runner(self, kind, **keywords):
        return kind(self._loss_fn, self._optimizer, **self._given, **keywords)

    @property
    def state(self):
        """A fresh one, since runners use up the state they are given."""
        return jax.tree.map(jnp.copy, self._state)

    def make_examples(self, step, positions):
        return reward_loss.make_examples(self.task, step, positions)

    def train(self, runner, folder):
        """The losses of each step that is still to be made in a folder."""
        recorded = Recorded(runner)
        checkpoints = Checkpoints(folder)
        train(
            self.state,
            runner=recorded,
            constants=self.task.constants,
            make_examples=self.make_examples,
            key=jax.random.key(1),
            validate=lambda state: {"score": 0.0},
            checkpoints=checkpoints,
            writer=lambda step: MetricsWriter(folder, resume_step=step),
            meta={},
            steps=STEPS,
            steps_per_call=PER_CALL,
            validate_every=SAVED,
            progress=False,
        )
        checkpoints.close()
        return recorded.losses


class Recorded:
    """A runner that notes the loss of every step."""

    def __init__(self, runner):
        self.runner, self.losses = runner, []
        self.place, self.batch = runner.place, runner.batch
        self.batch_size = runner.batch_size

    def __call__(self, *arguments):
        state, values = self.runner(*arguments)
        self.losses += np.asarray(values["loss"]).tolist()
        return state, values


def on_eight_devices(run, folder):
    """Losses by name; those of resumed runs begin at step SAVED."""
    devices = jax.devices()

    def on(count):
        return run.runner(MeshRunner, mesh=make_mesh(devices=devices[:count]))

    runners = {f"mesh of {count}": on(count) for count in (8, 4, 1)}
    runners["pmap of 8"] = run.runner(PmapRunner)
    losses = {"devices": len(devices)}
    for name in ("mesh of 8", "pmap of 8", "mesh of 1"):
        losses[name] = run.train(runners[name], folder / name)
    saved = [("mesh of 8", to) for to in ("mesh of 1", "mesh of 4", "pmap of 8")]
    for first, then in [*saved, ("pmap of 8", "mesh of 4")]:
        name = f"{first}, then {then}"
        shutil.copytree(folder / first / str(SAVED), folder / name / str(SAVED))
        losses[name] = run.train(runners[then], folder / name)
    return losses


def policies_on_eight_devices():
    """Losses of a few steps of a policy, by name."""
    key = jax.random.key(0)
    with tempfile.TemporaryDirectory() as folder:
        config = tiny_policy_config(
            write_all(pathlib.Path(folder)),
            **{"train.batch_size": 8, "objective.name": "elbo"},
        )
        with contextlib.redirect_stdout(io.StringIO()):
            run = build(config, key, key)
    optimizer = make_optimizer(**config["optimizer"], steps=POLICY_STEPS)
    given = {"batch_size": config["train"]["batch_size"]}
    runners = {
        f"mesh of {count}": MeshRunner(
            run.loss_fn,
            optimizer,
            mesh=make_mesh(devices=jax.devices()[:count]),
            **given,
        )
        for count in (8, 1)
    }
    runners["pmap of 8"] = PmapRunner(run.loss_fn, optimizer, **given)
    losses = {}
    for name, runner in runners.items():
        state = init_state(jax.tree.map(jnp.copy, run.variables), optimizer)
        examples = runner.batch(run.make_examples, 0, POLICY_STEPS)
        state, constants = runner.place(state), runner.place(run.constants)
        _, values = runner(state, constants, examples, key)
        losses[f"policy, {name}"] = np.asarray(values["loss"]).tolist()
    return losses


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """What this file prints as a script on eight virtual devices."""
    folder = tmp_path_factory.mktemp("runs")
    own = {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {EIGHT_DEVICES}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # Else a runner compiles again for a state that was restored.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
    }
    finished = subprocess.run(
        [sys.executable, __file__, folder],
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.parametrize("other", ["pmap of 8", "mesh of 1"])
def test_any_number_of_devices_any_way(losses, other):
    assert losses["devices"] == 8
    assert len(losses[other]) == len(losses["mesh of 8"]) == STEPS
    np.testing.assert_allclose(losses[other], losses["mesh of 8"], atol=1e-5)


@pytest.mark.parametrize("other", ["pmap of 8", "mesh of 1"])
def test_policies_on_any_number_of_devices(losses, other):
    """Before and after the policy itself begins to be trained."""
    wanted = losses["policy, mesh of 8"]
    assert len(set(wanted)) == POLICY_STEPS
    np.testing.assert_allclose(losses[f"policy, {other}"], wanted, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "mesh of 8, then mesh of 1",
        "mesh of 8, then mesh of 4",
        "mesh of 8, then pmap of 8",
        "pmap of 8, then mesh of 4",
    ],
)
def test_resuming_on_other_devices(losses, name):
    wanted = losses["mesh of 8"][SAVED:]
    assert len(losses[name]) == len(wanted)
    np.testing.assert_allclose(losses[name], wanted, atol=1e-5)


def test_there_is_something_to_agree_on(losses):
    """Steps differ by far more than devices do, and training gets somewhere."""
    values = np.array(losses["mesh of 8"])
    assert values.std() > 0.01
    assert values[-8:].mean() < values[:8].mean() - 0.01


if __name__ == "__main__":
    from conftest import tiny_config, tiny_parts

    config = tiny_config(**{"train.steps": STEPS, "optimizer.learning_rate": 0.02})
    found = on_eight_devices(Run(config, tiny_parts), pathlib.Path(sys.argv[1]))
    print(json.dumps(found | policies_on_eight_devices()))
