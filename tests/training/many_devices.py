"""Trains small runs on several layouts of devices, and prints what it saw as JSON.

`python many_devices.py FOLDER LAYOUTS [COORDINATOR PROCESSES ID]`, LAYOUTS in JSON:
model -> list of layouts, such as 4x2x1 (sizes of data, fsdp and tensor), "4x2x1 in 2
micro-batches" and pmap. It is a program of its own because JAX fixes devices and
processes when it starts. FOLDER holds `choices` and `language`, see
`policies.write_all`, and gets the checkpoints.
"""

import collections
import contextlib
import json
import pathlib
import shutil
import sys
from unittest import mock

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import policies
import wide
from jax.experimental import multihost_utils

from fsa.models import policy
from fsa.parallel import processes
from fsa.parallel.sharding import make_mesh
from fsa.recipes.kinds import RECIPES
from fsa.recipes.run import build_optimizer, build_runner
from fsa.training.checkpoint import Checkpoints
from fsa.training.loop import train
from fsa.training.monitor.metrics import MetricsWriter
from fsa.training.runner import MeshRunner
from fsa.training.step import init_state, make_optimizer

DEVICES, ONE, PMAP = 8, "1x1x1", "pmap"
STEPS, PER_CALL, SAVED = 16, 4, 8
# In the first of them only the reward model of a policy is trained.
REWARD_STEPS = 6
REWARD_MODEL, POLICY = MODELS = ("NP-BTL", "NP-DPO")
# (layout that saved at step SAVED, layout that resumes there).
RESUMED = (
    ("8x1x1", ONE),
    ("2x2x2", "4x2x1 in 2 micro-batches"),
    ("8x1x1", PMAP),
    (PMAP, "2x2x2"),
)


def sizes_of(layout):
    """(data, fsdp, tensor) of a mesh, and its number of micro-batches."""
    sizes, *micro = ("8x1x1" if layout == PMAP else layout).split(" in ")
    return tuple(map(int, sizes.split("x"))), int(micro[0].split()[0]) if micro else 1


def config_of(model, folder, layout):
    (_, fsdp, tensor), accumulate = sizes_of(layout)
    fields = {
        "mesh.fsdp": fsdp,
        "mesh.tensor": tensor,
        "train.accumulate": accumulate,
        "train.parallel": "pmap" if layout == PMAP else "mesh",
        "train.batch_size": 16,
        "train.steps": STEPS,
        "train.steps_per_call": PER_CALL,
        "train.validate_every": SAVED,
        "optimizer.learning_rate": 0.02,
    }
    if model == REWARD_MODEL:
        return conftest.tiny_config(**fields)
    # The policy draws z at random, and is itself trained from step REWARD_STEPS on.
    fields |= {"dpo.reward_steps": REWARD_STEPS, "objective.name": "ml"}
    if layout != PMAP and accumulate == 1 and jax.process_count() == 1:
        fields |= {"task.packing": "rows", "task.rows_at_once": 2 if fsdp > 1 else None}
    return policies.tiny_policy_config(folder, **fields)


def on_devices_of(layout):
    """Hides all devices but the first if a layout has one; else does nothing."""
    if layout == ONE and jax.device_count() > 1:
        return mock.patch.object(jax, "devices", lambda: jax.local_devices()[:1])
    return contextlib.nullcontext()


class Recorded:
    """A runner that notes losses and users, and whether the state stays in place."""

    def __init__(self, runner):
        self._runner = runner
        self.batch_size = runner.batch_size
        self.losses, self.users = [], collections.defaultdict(dict)
        self.kept = True

    def place(self, tree):
        return self._runner.place(tree)

    def batch(self, make_examples, first, count):
        def recorded(step, positions):
            examples = make_examples(step, positions)
            pairs = zip(examples.position.tolist(), examples.user.tolist(), strict=True)
            self.users[step].update(pairs)
            return examples

        return self._runner.batch(recorded, first, count)

    def __call__(self, state, constants, examples, key):
        before = jax.tree.map(lambda x: x.sharding, state)
        state, values = self._runner(state, constants, examples, key)
        self.losses += np.asarray(values["loss"]).tolist()
        kept = jax.tree.map(
            lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, before
        )
        self.kept &= all(jax.tree.leaves(kept))
        return state, values

    def shown(self):
        jitted = getattr(self._runner, "jitted", None)
        return {
            "losses": self.losses,
            "users": self.users,
            "kept": self.kept,
            "programs": jitted and jitted._cache_size(),
        }


class Run:
    """A model on one layout."""

    def __init__(self, model, folder, layout):
        self.layout = layout
        self._config = config_of(model, folder, layout)
        key = jax.random.key(0)
        with on_devices_of(layout), contextlib.redirect_stdout(sys.stderr):
            kind = RECIPES[self._config["kind"]]
            self.run = kind.build(self._config, key, key)
            self._optimizer = build_optimizer(self._config)
            self._runner = build_runner(
                self._config,
                self.run.loss_fn,
                self.run.sharding_rules,
                self._optimizer,
            )

    @property
    def _state(self):
        """A new one, since runners reuse the memory of the state they are given."""
        variables = jax.tree.map(jnp.copy, self.run.variables)
        return init_state(variables, self._optimizer)

    def first_steps(self):
        """Losses, users and whether the state stays in place; the state after them."""
        recorded, run = Recorded(self._runner), self.run
        state, constants = recorded.place(self._state), recorded.place(run.constants)
        # Placed, as the loop does, so that both run the same program.
        key = recorded.place(jax.random.key(1))
        for first in range(0, STEPS, PER_CALL):
            examples = recorded.batch(run.make_examples, first, PER_CALL)
            state, _ = recorded(state, constants, examples, key)
        return recorded.shown(), state

    def train(self, folder):
        """The same by the training loop, of the steps that a folder lacks."""
        recorded, checkpoints = Recorded(self._runner), Checkpoints(folder / "saved")
        with on_devices_of(self.layout):
            train(
                self._state,
                runner=recorded,
                constants=self.run.constants,
                make_examples=self.run.make_examples,
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
        return recorded.shown()


def scores_of_responses(folder):
    """Reads the scores of responses, and removes them so that the next run scores."""
    (path,) = folder.glob("choices/responses-*")
    names = ("log_prob", "features")
    found = {name: np.load(path / f"{name}.npy").tolist() for name in names}
    multihost_utils.sync_global_devices("all have read")
    if processes.is_first():
        shutil.rmtree(path)
    return found


def share_on_first_device(tree):
    arrays = jax.tree.leaves(tree)
    on_first = sum(x.addressable_shards[0].data.nbytes for x in arrays)
    return on_first / sum(x.nbytes for x in arrays)


def policies_by(folder, layouts):
    """What is seen of a policy by layout, with what comes before and after steps."""
    shown = {}
    for layout in layouts:
        this = Run(POLICY, folder, layout)
        seen, state = this.first_steps()
        seen["held"] = share_on_first_device(this.run.constants["base"])
        seen["valid"] = jax.tree.map(float, this.run.validate(state))
        shown[layout] = seen | scores_of_responses(folder)
    return shown


def reward_models_by(folder, layouts):
    """What is seen of a reward model by layout, and by layouts that resume others."""
    runs = {layout: Run(REWARD_MODEL, folder, layout) for layout in layouts}
    saving = {saved for saved, _ in RESUMED}
    shown = {
        layout: run.train(folder / layout) if layout in saving else run.first_steps()[0]
        for layout, run in runs.items()
    }
    for saved, then in RESUMED:
        if {saved, then} <= runs.keys():
            name = f"{saved}, then {then}"
            step = f"saved/{SAVED}"
            shutil.copytree(folder / saved / step, folder / name / step)
            shown[name] = runs[then].train(folder / name)
    return shown


def bytes_by_fsdp():
    """The bytes of a train state on the first device, by the size of fsdp."""
    optimizer = make_optimizer(learning_rate=1.0, steps=2, warmup_steps=1)
    shapes = jax.eval_shape(lambda v: init_state(v, optimizer), wide.policy_shapes())

    def held(fsdp):
        runner = MeshRunner(
            None,
            optimizer,
            mesh=make_mesh(fsdp),
            rules=policy.SHARDING_RULES,
            batch_size=DEVICES,
        )
        state = runner.place(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))

    return {fsdp: held(fsdp) for fsdp in (1, 2, 4, 8)}


if __name__ == "__main__":
    folder, layouts = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
    if sys.argv[3:]:
        coordinator, number, own = sys.argv[3:]
        processes.initialize(coordinator, int(number), int(own))
    shown = {
        REWARD_MODEL: reward_models_by(folder, layouts[REWARD_MODEL]),
        POLICY: policies_by(folder, layouts[POLICY]),
        "devices": jax.device_count(),
    }
    if ONE in layouts[REWARD_MODEL]:
        shown["bytes"] = bytes_by_fsdp()
    print(json.dumps(shown))
