"""Profiles cover the steps that were asked for, and tools can open them."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from fsa.training.monitor.profiling import Profile


@pytest.fixture
def traced(monkeypatch):
    """The calls of the profiler, without running it."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *a, **k: calls.append("on"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("off"))
    return calls


@pytest.mark.parametrize(
    ("first", "last", "wanted"),
    [
        (0, 0, ["on", 0, "off", 2, 4, 6]),
        (3, 3, [0, "on", 2, "off", 4, 6]),
        (2, 5, [0, "on", 2, 4, "off", 6]),
        (3, 4, [0, "on", 2, 4, "off", 6]),
        (7, 7, [0, 2, 4, "on", 6, "off"]),
    ],
)
def test_calls_that_run_the_steps_are_traced(traced, first, last, wanted):
    profile = Profile("there", first, last)
    for start in range(0, 8, 2):
        found = profile(start, 2, lambda x: traced.append(x) or x + 1, start)
        assert found == start + 1
    assert traced == wanted
    assert str(profile) == "Profile: tensorboard --logdir=there"


def test_a_run_that_resumes_after_the_steps_has_no_profile(traced):
    profile = Profile("there", 3, 4)
    profile(6, 2, lambda: None)
    assert traced == []
    assert "No profile" in str(profile) and "3 to 4" in str(profile)


def test_tools_can_open_a_profile(tmp_path):
    """In TensorBoard, whose plugin looks for this folder, and in Perfetto."""
    profile = Profile(tmp_path, 0, 0)
    profile(0, 1, jax.jit(lambda x: jnp.sin(x @ x)), jnp.ones((50, 50)))
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    (path,) = tmp_path.glob("plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert any("dot" in event.get("name", "") for event in events)


@pytest.mark.parametrize("steps", ["9", "3,2", "5,1000", "a,b", "-1,2", "1,2,3"])
def test_steps_that_are_not_of_the_run_are_refused(launch, tmp_path, steps):
    finished = launch(
        "train",
        "--config=experiments/synthetic/two_types.py",
        f"--workdir={tmp_path}/run",
        f"--profile_steps={steps}",
    )
    assert finished.code == 2 and "--profile_steps" in finished.err
    assert not (tmp_path / "run").exists()
