"""Compiled programs are kept in the run directory, and JAX's settings are put back."""

import contextlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache

from fsa.training.compile_cache import keep_compiled

NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def settings():
    return {name: getattr(jax.config, name) for name in NAMES}


@contextlib.contextmanager
def events():
    """Counts JAX's events by name."""
    found = {}

    def count(name, **_):
        found[name] = found.get(name, 0) + 1

    monitoring.register_event_listener(count)
    yield found
    monitoring.unregister_event_listener(count)


@pytest.fixture(autouse=True)
def no_cache():
    """JAX as it starts, with no folder of compiled programs."""
    before = settings()
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    compilation_cache.reset_cache()
    for name, value in before.items():
        jax.config.update(name, value)


def compute():
    """Runs a small program that was not compiled in this process before.

    To forget all others takes ten seconds, and slows what comes after.
    """
    jax.clear_caches()
    return jax.jit(lambda x: jnp.sin(x) * 3)(jnp.arange(7.0))


@pytest.mark.slow
def test_another_process_need_not_compile(tmp_path):
    """Not even small programs, of which the first seconds of a command consist."""
    with keep_compiled(tmp_path / "run"):
        first = compute()
    with keep_compiled(tmp_path / "run"), events() as found:
        second = compute()
    np.testing.assert_array_equal(first, second)
    asked = found["/jax/compilation_cache/compile_requests_use_cache"]
    assert found["/jax/compilation_cache/cache_hits"] == asked > 0


@pytest.mark.slow
def test_each_run_has_its_own_folder(tmp_path):
    for name in "ab":
        with keep_compiled(tmp_path / name):
            compute()
        assert list((tmp_path / name / "compiled").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, ValueError])
def test_settings_are_as_before(tmp_path, error):
    before = settings()
    with pytest.raises(error) if error else contextlib.nullcontext():
        with keep_compiled(tmp_path):
            assert settings() != before
            if error:
                raise error
    assert settings() == before
    compute()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_set_stays(tmp_path):
    jax.config.update(NAMES[0], str(tmp_path / "shared"))
    before = settings()
    with keep_compiled(tmp_path / "run"):
        assert settings() == before
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_no_trouble(tmp_path):
    """As on a full or read-only disk."""
    (tmp_path / "compiled").write_text("a file in its place")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with keep_compiled(tmp_path):
            assert compute().shape == (7,)
