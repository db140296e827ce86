"""`Modulated`: a Flax module whose parameters z modulates, by `fsa.conditioning`.

Shapes: D latent dimensions.
"""

from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from fsa.conditioning import bridge, condition, hypernet, scale, shift
from fsa.conditioning.spec import Spec, path_name

# FiLM (Perez et al. 2018) of every layer: z scales and shifts the layer's outputs.
FILM: Spec = ((".*/kernel", scale()), (".*/bias", shift()))


class Modulated(nn.Module):
    """A Flax module with a second input, z, which modulates the module's parameters.

    The parameters that all z share are stored under `module`, those of the hypernetwork
    under `hypernet`. A hypernetwork at its initialisation changes nothing. Under
    `jax.vmap` over z the module's weights exist once, and what does not depend on z is
    computed once.

    Attributes:
      module: any module that takes one array, without random numbers or mutable state.
      latent_dim: D.
      spec: which parameters are modulated and how, see `fsa.conditioning.hypernet`;
        paths are those within the module's own `params`.
      trunk: widths of the hypernetwork's hidden layers.
    """

    module: nn.Module
    latent_dim: int
    spec: Spec = FILM
    trunk: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, z: jax.Array) -> jax.Array:
        """Applies the module to `x` with its parameters modulated by z `[D]`.

        Raises:
          ValueError: if `spec` does not fit the module, or D is below 1.
          MaterializationError: if the module would need a copy of a weight for each z.
        """
        if self.is_initializing():
            self.module(x)
        module, variables = self.module.unbind()
        params = variables["params"]
        init, modulate = hypernet(self.spec, self.latent_dim, trunk=self.trunk)
        hyper = self.param("hypernet", lambda key: _to_dict(init(key, params)))
        like = jax.eval_shape(init, jax.random.key(0), params)

        def apply(params, x):
            return module.apply({**variables, "params": params}, x)

        conditioned = condition(params, modulate(_from_dict(hyper, like), z))
        return bridge(apply, strict=True)(conditioned, x)


def _to_dict(tree: Any) -> dict[str, Any]:
    """Converts a pytree to nested dicts, whose structure checkpoints preserve."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return traverse_util.unflatten_dict(
        {path_name(path): leaf for path, leaf in leaves}, sep="/"
    )


def _from_dict(nested: dict[str, Any], like: Any) -> Any:
    """Inverts `_to_dict`; `like` has the structure of the original pytree."""
    flat = traverse_util.flatten_dict(nested, sep="/")
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[path_name(path)], like)
