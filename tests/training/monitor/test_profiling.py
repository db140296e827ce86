"""Profiles cover the steps that were asked for, and open."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from fsa.training.monitor.profiling import Profile


@pytest.fixture
def traced(monkeypatch):
    """What the profiler was told, without its cost."""
    told = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: told.append("on"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: told.append("off"))
    return told


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
def test_calls_that_make_the_steps_are_traced(traced, first, last, wanted):
    profile = Profile("there", first, last)
    for start in range(0, 8, 2):
        found = profile(start, 2, lambda x: traced.append(x) or x + 1, start)
        assert found == start + 1
    assert traced == wanted
    assert str(profile) == "Profile: tensorboard --logdir=there"


def test_a_resumed_run_may_be_past_them(traced):
    profile = Profile("there", 3, 4)
    profile(6, 2, lambda: None)
    assert traced == []
    assert str(profile).startswith("No profile: steps 3 to 4 were made before")


def test_a_profile_that_opens(tmp_path):
    """In TensorBoard (its folder has the name its plugin wants) and in Perfetto."""
    profile = Profile(tmp_path, 0, 0)
    profile(0, 1, jax.jit(lambda x: jnp.sin(x @ x)), jnp.ones((50, 50)))
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    (path,) = tmp_path.glob("plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert any("dot" in event.get("name", "") for event in events)


@pytest.mark.parametrize("steps", ["9", "3,2", "5,1000", "a,b", "-1,2", "1,2,3"])
def test_steps_that_cannot_be(launch, tmp_path, steps):
    finished = launch(
        "train",
        "--config=experiments/synthetic/two_types.py",
        f"--workdir={tmp_path}/run",
        f"--profile_steps={steps}",
    )
    assert finished.code == 2
    message = f"error: --profile_steps={steps}: give FIRST,LAST, of the steps 0 to 999"
    assert finished.err.strip() == message
    assert not (tmp_path / "run").exists()
