"""Programs that JAX has compiled, kept in a run directory for later commands."""

import contextlib
import warnings
from collections.abc import Iterator

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from fsa.training import run_directory

_DIRECTORY = "jax_compilation_cache_dir"
_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"


@contextlib.contextmanager
def keep_compiled(workdir: epath.PathLike) -> Iterator[None]:
    """Keeps the programs that are compiled meanwhile in `compiled` of a run directory.

    Resuming, evaluation, predictions and steering then need not compile them again. If
    a folder is set already, as by JAX_COMPILATION_CACHE_DIR, so that several runs share
    programs, that folder is used and nothing is changed. JAX's settings are global to
    the process; they are as before at the end.

    Args:
      workdir: the run directory; nothing is kept if it cannot be written.
    """
    if getattr(jax.config, _DIRECTORY) is not None:
        yield
        return
    folder = run_directory.locate(workdir) / "compiled"
    # Small programs take a good part of the first seconds. In object storage a look
    # for each would take longer than to compile it.
    least = getattr(jax.config, _LEAST_SECONDS) if "://" in str(folder) else 0.0
    with warnings.catch_warnings():
        # On a full or read-only disk, where JAX would warn for every program. It
        # compiles them, and nothing is lost.
        warnings.filterwarnings(
            "ignore", message="Error (reading|writing) persistent compilation cache"
        )
        with _set(_DIRECTORY, str(folder)), _set(_LEAST_SECONDS, least):
            # JAX opens its folder once, and would not see another one.
            compilation_cache.reset_cache()
            try:
                yield
            finally:
                compilation_cache.reset_cache()


@contextlib.contextmanager
def _set(name: str, value: object) -> Iterator[None]:
    """Sets a field of JAX's config, and sets it back."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)
