"""What JAX compiles during a test, and how."""

import contextlib

import jax
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def compilations():
    """Lists what JAX compiles meanwhile, or reads from its cache."""
    found = []

    def note(name, _, **details):
        if name == "/jax/core/compile/backend_compile_duration":
            found.append(details)

    monitoring.register_event_duration_secs_listener(note)
    yield found
    monitoring.unregister_event_duration_listener(note)


@contextlib.contextmanager
def compiled_quickly(cache):
    """Compiles every program once and with little optimization."""
    cache_dir = jax.config.jax_compilation_cache_dir
    least_seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    disabled = jax.config.read("jax_disable_most_optimizations")
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", cache_dir)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    jax.config.update("jax_disable_most_optimizations", disabled)
