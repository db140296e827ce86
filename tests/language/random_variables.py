"""Random variables of models, made without running their slow initializers."""

import jax
import jax.numpy as jnp
import numpy as np


def random_variables(model, seed=0):
    """NumPy variables of a `Transformer`, all away from where training begins."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))
    rng = np.random.default_rng(seed)

    def fill(path, x):
        start = 1 - model.norm_offset if path[-1].key == "scale" else 0
        return (start + rng.normal(0, 0.3, x.shape)).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)
