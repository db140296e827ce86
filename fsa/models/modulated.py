"""Flax modules whose parameters a latent modulates, by `fsa.conditioning`.

Shapes: D latent dimensions.
"""

from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from fsa.conditioning import bridge, condition, hypernet, scale, shift
from fsa.conditioning.spec import Spec, path_name

# FiLM (Perez et al. 2018) of every layer: the latent scales and shifts its outputs.
FILM: Spec = ((".*/kernel", scale()), (".*/bias", shift()))


class Modulated(nn.Module):
    """A module that takes a latent, as modulations of its own parameters.

    Parameters that all z share lie under `module`, the hypernetwork's under `hypernet`.
    A fresh hypernetwork changes nothing. Under `jax.vmap` over z there is one copy of
    the module's weights, and what does not depend on z is computed once.

    Attributes:
      module: any module of one array, without random numbers or mutable state.
      latent_dim: D.
      spec: what is modulated, as `fsa.conditioning.hypernet` takes it; paths are those
        within the module's own `params`.
      trunk: widths of the hypernetwork's hidden layers.
    """

    module: nn.Module
    latent_dim: int
    spec: Spec = FILM
    trunk: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, z: jax.Array) -> jax.Array:
        """What the module gives for `x` at the latent `[D]`.

        Raises:
          ValueError: for a spec that does not fit the module, or D below 1.
          MaterializationError: if the module would need weights built for each z.
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
    """A pytree as nested dicts, which checkpoints give back as they were."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return traverse_util.unflatten_dict(
        {path_name(path): leaf for path, leaf in leaves}, sep="/"
    )


def _from_dict(nested: dict[str, Any], like: Any) -> Any:
    """The inverse of `_to_dict`; `like` has the pytree's structure."""
    flat = traverse_util.flatten_dict(nested, sep="/")
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[path_name(path)], like)
