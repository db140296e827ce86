"""Arrays that tests of this folder are fed with, and how they compare results."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np


def float64():
    """A context in which arrays may be of float64."""
    if hasattr(jax, "set_mesh"):
        return jax.enable_x64(True)
    return importlib.import_module("jax.experimental").enable_x64()  # Older versions.


def normal(seed, *shape, std=1.0):
    """Fixed normal numbers; those of `jax.random` would be a program to compile."""
    numbers = std * np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(numbers.astype("f4"))


def noisy(tree, seed=0):
    """Adds fixed noise: a fresh hypernetwork would hide what is not used."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f4"), tree)


def error(result, wanted):
    """The largest difference in any array, relative to its largest entry."""
    assert jax.tree.structure(result) == jax.tree.structure(wanted)
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(wanted), strict=True)
    found = []
    for a, b in ((np.asarray(a), np.asarray(b)) for a, b in pairs):
        assert a.shape == b.shape and a.dtype == b.dtype
        found.append(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)))
    return float(np.max(found))  # NaN if any is
