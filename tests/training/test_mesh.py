"""One config on any mesh and any processes: the same rows, the same losses.

Devices and processes are fixed when JAX starts, so this file is also a script:
`python test_mesh.py FOLDER LAYOUTS [COORDINATOR PROCESSES ID]` prints what it saw of
the first steps of NP-BTL and NP-DPO on layouts such as 4x2x1, each from the same state,
and of what comes before and after: scores of responses, and a validation.
"""

import collections
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import policies
import pytest
import wide
from jax.experimental import multihost_utils

from experiments.synthetic import two_types
from fsa.models import policy
from fsa.parallel import processes as distributed
from fsa.parallel.sharding import make_mesh
from fsa.recipes.config import resolve
from fsa.recipes.runs import build, make_runner
from fsa.training.runner import MeshRunner
from fsa.training.step import init_state, make_optimizer

TESTS = pathlib.Path(__file__).resolve().parents[1]
STEPS, PER_CALL, DEVICES = 50, 10, 8
ONE = "1x1x1"
MESHES = ("8x1x1", "4x2x1", "2x2x2")
# So many processes, and the mesh over all of them.
PROCESSES = {2: "4x2x1", 4: "2x2x2"}
MODELS = ("NP-BTL", "NP-DPO")
ACCUMULATED = "4x2x1 in 2 micro-batches"


def mesh_of(layout):
    """The mesh's fields in a config, and micro-batches."""
    sizes, *micro = layout.split(" in ")
    _, fsdp, tensor = map(int, sizes.split("x"))
    mesh = {"mesh.fsdp": fsdp, "mesh.tensor": tensor}
    return mesh, int(micro[0].split()[0]) if micro else 1


def config_of(model, folder, layout):
    """The shipped config of a reward model; a tiny policy at the shipped rate."""
    mesh, accumulate = mesh_of(layout)
    fields = {"train.accumulate": accumulate, **mesh}
    if model == "NP-BTL":
        config = two_types.get_config("np-btl")
        config.update_from_flattened_dict(fields)
        return resolve(config)
    shipped = {"optimizer.warmup_steps": 20, "train.steps": 200}
    fields |= {"train.batch_size": 16, "dpo.reward_steps": 0, **shipped}
    return policies.tiny_policy_config(folder, **fields)


class Seen:
    """The rows of a run, as one process made them."""

    def __init__(self, make_examples):
        self.make_examples = make_examples
        self.users = collections.defaultdict(dict)

    def __call__(self, step, positions):
        examples = self.make_examples(step, positions)
        pairs = zip(examples.position.tolist(), examples.user.tolist(), strict=True)
        self.users[step].update(pairs)
        return examples


def first_steps(config, run):
    """What is seen of them, and the state after them.

    Losses, users by step and position, and whether the state stays where it is.
    """
    optimizer = make_optimizer(**config["optimizer"], steps=config["train"]["steps"])
    runner = make_runner(config, run, optimizer)
    state = runner.place(init_state(jax.tree.map(jnp.copy, run.variables), optimizer))
    placed = jax.tree.map(lambda x: x.sharding, state)
    constants, key = runner.place(run.constants), runner.place(jax.random.key(1))
    make_examples, losses = Seen(run.make_examples), []
    for first in range(0, STEPS, PER_CALL):
        examples = runner.batch(make_examples, first, PER_CALL)
        state, metrics = runner(state, constants, examples, key)
        losses += np.asarray(metrics["loss"]).tolist()
    kept = jax.tree.map(
        lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, placed
    )
    return {
        "losses": losses,
        "users": make_examples.users,
        "kept": all(jax.tree.leaves(kept)),
        "programs": runner.jitted._cache_size(),
    }, state


def scored(folder):
    """What was computed of responses, and removes it so that it is again."""
    (path,) = folder.glob("choices/responses-*")
    names = ("log_prob", "features")
    found = {name: np.load(path / f"{name}.npy").tolist() for name in names}
    multihost_utils.sync_global_devices("all have read")
    if jax.process_index() == 0:
        shutil.rmtree(path)
    return found


def shown_by(folder, layouts):
    key = jax.random.key(0)
    shown = {model: {} for model in MODELS}
    for model, layout in itertools.product(MODELS, layouts):
        config = config_of(model, folder, layout)
        with contextlib.redirect_stdout(sys.stderr):
            run = build(config, key, key)
        seen, state = first_steps(config, run)
        if model == "NP-DPO":
            base = jax.tree.leaves(run.constants["base"])
            on_one = sum(x.addressable_shards[0].data.nbytes for x in base)
            seen["held"] = on_one / sum(x.nbytes for x in base)
            seen["valid"] = jax.tree.map(float, run.validate(state))
            seen |= scored(folder)
        shown[model][layout] = seen
    return shown


def bytes_by_fsdp():
    """What the first device holds of a train state, by the size of fsdp."""
    optimizer = make_optimizer(learning_rate=1.0, steps=2, warmup_steps=1)

    def held(fsdp):
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), wide.policy_shapes()
        )
        runner = MeshRunner(
            None,
            optimizer,
            mesh=make_mesh(fsdp),
            rules=policy.SHARDING_RULES,
            batch_size=DEVICES,
        )
        state = runner.place(init_state(zeros, optimizer))
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))

    return {fsdp: held(fsdp) for fsdp in (1, 2, 4, 8)}


def start(folder, layouts, num_devices, *process):
    """Starts this file as a script."""
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    own = {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # Collectives wait for each other in threads, of which there must be enough.
        "PJRT_NPROC": "32",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
    }
    return subprocess.Popen(
        [sys.executable, __file__, folder, ",".join(layouts), *map(str, process)],
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes):
    """What each has shown, read at once, since none ends before all have."""

    def one(process):
        out, err = process.communicate(timeout=1800)
        assert process.returncode == 0, err
        # Gloo talks on the same stream.
        return json.loads(out.splitlines()[-1])

    with futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(one, processes))


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory):
    return lambda: policies.write_all(tmp_path_factory.mktemp("mesh"))


@pytest.fixture(scope="module")
def alone(make_folder):
    """What one process shows, of one device and of many."""
    started = [
        start(make_folder(), [ONE], 1),
        start(make_folder(), [*MESHES, ACCUMULATED], DEVICES),
    ]
    one, many = finish(started)
    return many | {model: one[model] | many[model] for model in MODELS}


@pytest.fixture(scope="module")
def together(make_folder):
    """What each of several processes shows, by their number."""
    shown, folder = {}, make_folder()
    for number, layout in PROCESSES.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        started = [
            start(folder, [layout], DEVICES // number, coordinator, number, i)
            for i in range(number)
        ]
        shown[number] = finish(started)
    return shown


def assert_same_losses(losses, wanted):
    losses, wanted = np.array(losses), np.array(wanted)
    assert len(losses) == len(wanted) == STEPS
    bound = 1e-5 * np.maximum(np.abs(wanted), np.abs(wanted[0]))
    assert (np.abs(losses - wanted) <= bound).all(), np.abs(losses - wanted).max()


@pytest.mark.parametrize("layout", [*MESHES, ACCUMULATED])
@pytest.mark.parametrize("model", MODELS)
def test_any_mesh(alone, model, layout):
    wanted, shown = alone[model][ONE], alone[model][layout]
    assert_same_losses(shown["losses"], wanted["losses"])
    assert shown["users"] == wanted["users"]
    assert shown["kept"] and shown["programs"] == 1


def assert_same_around(shown, wanted, layout):
    """What comes before and after the steps of a policy; parts of weights are held."""
    for name in ("log_prob", "features"):
        np.testing.assert_allclose(shown[name], wanted[name], 1e-5, 1e-5)
    assert shown["valid"].keys() == wanted["valid"].keys()
    for name, value in wanted["valid"].items():
        assert shown["valid"][name] == pytest.approx(value, rel=1e-3)
    fsdp = mesh_of(layout)[0]["mesh.fsdp"]
    assert shown["held"] < 1.1 / fsdp


@pytest.mark.parametrize("layout", MESHES)
def test_a_policy_is_loaded_scored_and_validated_on_any_mesh(alone, layout):
    """In parts from the files on, with the same scores of responses and users."""
    wanted, shown = alone["NP-DPO"][ONE], alone["NP-DPO"][layout]
    assert_same_around(shown, wanted, layout)


def test_parameters_and_optimizer_state_are_stored_in_parts(alone):
    """But for norms and the like, which are less than one hundredth."""
    held = {int(fsdp): size for fsdp, size in alone["bytes"].items()}
    for fsdp in (2, 4, 8):
        assert 1 <= held[fsdp] * fsdp / held[1] < 1 + 0.01 * fsdp


@pytest.mark.parametrize("model", MODELS)
def test_steps_differ_by_more_than_meshes(alone, model):
    losses = np.array(alone[model][ONE]["losses"])
    assert np.abs(np.diff(losses)).min() > 0
    assert losses[-10:].mean() < losses[:10].mean()


@pytest.mark.slow
@pytest.mark.parametrize("number", PROCESSES)
@pytest.mark.parametrize("model", MODELS)
def test_any_processes(alone, together, model, number):
    """Each makes some of the rows, all of them together those of one process."""
    wanted, layout = alone[model][ONE], PROCESSES[number]
    users = collections.defaultdict(dict)
    for process in together[number]:
        shown = process[model][layout]
        assert_same_losses(shown["losses"], wanted["losses"])
        if model == "NP-DPO":
            assert_same_around(shown, wanted, layout)
        for step, own in shown["users"].items():
            assert len(own) < len(wanted["users"][step])
            users[step].update(own)
    assert users == wanted["users"]


if __name__ == "__main__":
    if sys.argv[3:]:
        coordinator, number, own = sys.argv[3:]
        distributed.initialize(coordinator, int(number), int(own))
    shown = shown_by(pathlib.Path(sys.argv[1]), sys.argv[2].split(","))
    if jax.local_device_count() == DEVICES:
        shown["bytes"] = bytes_by_fsdp()
    print(json.dumps(shown))
