"""Runners: the same numbers on any mesh, under pmap and for any number of processes.

`many_devices.py` trains small runs on eight virtual devices, once for all quick tests
here and once for slow ones.
"""

import collections
import json
import os
import pathlib
import socket
import subprocess
import sys
from concurrent import futures

import many_devices
import numpy as np
import policies
import pytest
from many_devices import (
    DEVICES,
    MODELS,
    ONE,
    PMAP,
    POLICY,
    RESUMED,
    REWARD_MODEL,
    REWARD_STEPS,
    SAVED,
    STEPS,
)

TESTS = pathlib.Path(__file__).resolve().parents[1]
ACCUMULATED = "4x2x1 in 2 micro-batches"
MESHES = ("8x1x1", ACCUMULATED, "2x2x2")
# Every layout takes long to compile. Quick tests train a reward model on every axis of
# a mesh, and in micro-batches; slow ones on the other layouts, and on those that resume
# theirs, and a policy.
QUICK = {REWARD_MODEL: [ONE, ACCUMULATED, "2x2x2"], POLICY: []}
SLOW = {
    REWARD_MODEL: [ONE, "2x2x2", "8x1x1", PMAP],
    POLICY: [ONE, *MESHES, PMAP],
}
# Number of processes -> the mesh over their devices.
PROCESSES = {2: "4x2x1", 4: "2x2x2"}


def start(folder, layouts, num_devices, *process):
    """Starts many_devices.py with layouts by model and a number of devices."""
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    own = {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # Else a runner compiles again for a state that was restored.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # Collectives wait for each other in threads, of which there must be enough.
        "PJRT_NPROC": "32",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
    }
    arguments = [many_devices.__file__, folder, json.dumps(layouts), *map(str, process)]
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes):
    """Returns what each process printed; all are read at once, as all end together."""

    def one(process):
        out, err = process.communicate(timeout=1800)
        assert process.returncode == 0, err
        # Gloo prints to the same stream.
        return json.loads(out.splitlines()[-1])

    with futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(one, processes))


def run_alone(folder, layouts):
    """What one process with eight devices saw, by model and layout."""
    (shown,) = finish([start(policies.write_all(folder), layouts, DEVICES)])
    assert shown["devices"] == DEVICES
    return shown


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process saw of the quick layouts, by model and layout."""
    return run_alone(tmp_path_factory.mktemp("alone"), QUICK)


@pytest.fixture(scope="module")
def alone_slow(tmp_path_factory):
    """What another process saw of the slow layouts, by model and layout."""
    return run_alone(tmp_path_factory.mktemp("alone"), SLOW)


@pytest.fixture
def seen(request, alone):
    """What one process saw: `seen(model, layout)`, or of one that `then` resumed."""

    def of(model, layout, then=None):
        quick = is_quick(model, layout, then or layout)
        found = alone if quick else request.getfixturevalue("alone_slow")
        return found[model][f"{layout}, then {then}" if then else layout]

    return of


def is_quick(model, *layouts):
    return set(layouts) <= set(QUICK[model])


def of_layouts(models, layouts):
    """Parametrizes a test by model and layout; some pairs are slow."""
    pairs = [
        pytest.param(
            model,
            layout,
            marks=[] if is_quick(model, layout) else [pytest.mark.slow],
        )
        for model in models
        for layout in layouts
    ]
    return pytest.mark.parametrize(("model", "layout"), pairs)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What each of several processes saw, by their number."""
    shown = {}
    for number, layout in PROCESSES.items():
        folder = policies.write_all(tmp_path_factory.mktemp("together"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        started = [
            start(
                folder,
                {model: [layout] for model in MODELS},
                DEVICES // number,
                coordinator,
                number,
                i,
            )
            for i in range(number)
        ]
        shown[number] = finish(started)
    return shown


def assert_same_losses(losses, wanted):
    losses, wanted = np.array(losses), np.array(wanted)
    assert len(losses) == len(wanted) == STEPS
    bound = 1e-5 * np.maximum(np.abs(wanted), np.abs(wanted[0]))
    assert (np.abs(losses - wanted) <= bound).all(), np.abs(losses - wanted).max()


@of_layouts(MODELS, [*MESHES, PMAP])
def test_losses_and_users_are_those_of_one_device(seen, model, layout):
    wanted, shown = seen(model, ONE), seen(model, layout)
    assert_same_losses(shown["losses"], wanted["losses"])
    assert shown["users"] == wanted["users"]
    assert shown["kept"]
    # On a mesh, one program serves all calls.
    assert shown["programs"] == (None if layout == PMAP else 1)


@of_layouts(MODELS, [ONE])
def test_steps_differ_by_more_than_layouts(seen, model, layout):
    """And training lowers the loss, of the policy from its own first step on."""
    losses = np.array(seen(model, layout)["losses"])
    assert np.abs(np.diff(losses)).min() > 1e-4
    trained = losses[REWARD_STEPS if model == POLICY else 0 :]
    assert trained[-4:].mean() < trained[:4].mean()
    if model == POLICY:
        assert trained.min() > losses[:REWARD_STEPS].max()


@pytest.mark.parametrize(
    ("saved", "then"),
    [
        pytest.param(
            *pair, marks=[] if is_quick(REWARD_MODEL, *pair) else [pytest.mark.slow]
        )
        for pair in RESUMED
    ],
)
def test_resuming_on_another_layout(seen, saved, then):
    wanted = seen(REWARD_MODEL, saved)["losses"][SAVED:]
    losses = seen(REWARD_MODEL, saved, then)["losses"]
    assert len(losses) == len(wanted) == STEPS - SAVED
    np.testing.assert_allclose(losses, wanted, atol=1e-5)


def assert_same_around(shown, wanted, layout):
    """Scores of responses and validation are the same; base weights are in parts."""
    for name in ("log_prob", "features"):
        np.testing.assert_allclose(shown[name], wanted[name], 1e-5, 1e-5)
    assert shown["valid"].keys() == wanted["valid"].keys()
    for name, value in wanted["valid"].items():
        assert shown["valid"][name] == pytest.approx(value, rel=1e-3)
    (_, fsdp, _), _ = many_devices.sizes_of(layout)
    assert shown["held"] < 1.1 / fsdp


@of_layouts([POLICY], MESHES)
def test_a_policy_is_loaded_scored_and_validated_on_any_mesh(seen, model, layout):
    assert_same_around(seen(model, layout), seen(model, ONE), layout)


def test_parameters_and_optimizer_state_are_stored_in_parts(alone):
    """Except for norms and the like, which are less than one hundredth."""
    held = {int(fsdp): size for fsdp, size in alone["bytes"].items()}
    for fsdp in (2, 4, 8):
        assert 1 <= held[fsdp] * fsdp / held[1] < 1 + 0.01 * fsdp


@pytest.mark.slow
@pytest.mark.parametrize("number", PROCESSES)
@pytest.mark.parametrize("model", MODELS)
def test_any_processes(seen, together, model, number):
    """Each makes some of the examples, and together they make those of one process."""
    wanted, layout = seen(model, ONE), PROCESSES[number]
    users = collections.defaultdict(dict)
    for process in together[number]:
        shown = process[model][layout]
        assert_same_losses(shown["losses"], wanted["losses"])
        if model == POLICY:
            assert_same_around(shown, wanted, layout)
        for step, own in shown["users"].items():
            assert len(own) < len(wanted["users"][step])
            users[step].update(own)
    assert users == wanted["users"]
