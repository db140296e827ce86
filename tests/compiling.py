"""What JAX compiles during a test."""

import contextlib

from jax import monitoring


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
