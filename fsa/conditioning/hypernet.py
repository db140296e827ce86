"""The hypernetwork z -> modulations of chosen parameters, and what is done with them.

    spec = [(".*/kernel", scale() + low_rank(8)), (".*/bias", shift())]
    init, modulate = hypernet(spec, latent_dim=16)
    hyper = init(key, params)
    conditioned = condition(params, modulate(hyper, z))

All functions are pure and take one z; rows of a batch, each with a z of its own, are
`jax.vmap` over z and the row, with params and hyper unmapped.

Shapes: D latent dimensions.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .bridge import table
from .leaf import Conditioned, Delta, is_conditioned
from .spec import Spec, parts, path_name, resolve

Modulations = dict[str, Delta]


class Hypernet(NamedTuple):
    """A pair of pure functions, as in optax.

    Attributes:
      init: `(key, params) -> hyper`, a pytree of float arrays. Raises ValueError where
        the spec does not fit `params`.
      apply: `(hyper, z) -> modulations`, with z `[D]`.
    """

    init: Callable[[jax.Array, Any], Any]
    apply: Callable[[Any, jax.Array], Modulations]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """An affine map from features of z to one array of a modulation.

    Attributes:
      kernel: `[features, *shape]`.
      bias: `[*shape]`.
    """

    kernel: jax.Array
    bias: jax.Array

    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps `[features]` to an array of `shape`."""
        return jnp.tensordot(features, self.kernel, 1) + self.bias


def hypernet(
    spec: Spec,
    latent_dim: int,
    *,
    trunk: Sequence[int] = (),
    normalize: bool = False,
    dtype: Any = jnp.float32,
) -> Hypernet:
    """A hypernetwork that is the identity until it is trained.

    Args:
      spec: what is modulated, see `spec.py`.
      latent_dim: D.
      trunk: widths of hidden layers between z and all heads, with GELU; without any,
        modulations are affine in z.
      normalize: divide z by its root mean square first, so that only its direction
        counts.
      dtype: of the hypernetwork's parameters and of modulations, whatever the dtype of
        the parameters they modulate.

    Returns:
      (init, apply). What z decides starts at zero, so a fresh hypernetwork changes
      nothing; a learned basis starts random, and "generated" factors a(z) do.
    """
    if latent_dim < 1:
        raise ValueError(f"latent_dim is at least 1, not {latent_dim}")

    def init(key, params):
        found = resolve(spec, params)
        trunk_key, key = jax.random.split(key)
        layers, width = [], latent_dim
        for n, hidden in enumerate(trunk):
            layer_key = jax.random.fold_in(trunk_key, n)
            kernel = _normal(layer_key, (width, hidden), 1 / math.sqrt(width), dtype)
            layers.append(Head(kernel, jnp.zeros(hidden, dtype)))
            width = hidden

        def array(part, part_key):
            start = _normal(part_key, part.shape, part.std, dtype)
            if not part.per_user:
                return start
            return Head(jnp.zeros((width, *part.shape), dtype), start)

        leaves = {}
        for n, (path, (modulation, leaf)) in enumerate(found.items()):
            wanted, treedef = jax.tree.flatten(parts(path, modulation, leaf.shape))
            keys = jax.random.split(jax.random.fold_in(key, n), len(wanted))
            leaves[path] = jax.tree.unflatten(treedef, map(array, wanted, keys))
        return {"trunk": layers, "leaves": leaves}

    def apply(hyper, z):
        if z.shape != (latent_dim,):
            raise ValueError(
                f"z has shape {z.shape}, not ({latent_dim},); jax.vmap over rows of z"
            )
        features = z.astype(dtype)
        if normalize:
            square = jnp.mean(features**2)
            features = features * jax.lax.rsqrt(square + 1e-6)
        for layer in hyper["trunk"]:
            features = jax.nn.gelu(layer(features))
        return jax.tree.map(
            lambda part: part(features) if isinstance(part, Head) else part,
            hyper["leaves"],
            is_leaf=lambda x: isinstance(x, Head),
        )

    return Hypernet(init, apply)


def user_axes(hyper: Any) -> Modulations:
    """Which parts of modulations each user has of its own, for `jax.vmap`.

    Modulations of many users at once, that a loop then uses again and again:

        axes = user_axes(hyper)
        modulations = jax.vmap(modulate, (None, 0), axes)(hyper, z)  # z [U, D]
        jax.vmap(row, (axes, 0))(modulations, x)

    Args:
      hyper: parameters of a hypernetwork.

    Returns:
      Modulations with 0 in place of a part that z decides and None in place of one
      that all users share.
    """
    return jax.tree.map(
        lambda part: 0 if isinstance(part, Head) else None,
        hyper["leaves"],
        is_leaf=lambda x: isinstance(x, Head),
    )


def _normal(key, shape, std, dtype):
    return (
        std * jax.random.normal(key, shape, dtype) if std else jnp.zeros(shape, dtype)
    )


def condition(params: Any, modulations: Modulations) -> Any:
    """Puts modulations on parameters.

    Args:
      params: any pytree of arrays.
      modulations: {path: Delta}, as a hypernetwork gives them.

    Returns:
      The same tree with a `Conditioned` in place of each parameter that is modulated.

    Raises:
      ValueError: for a path that `params` does not have, or a part that does not fit
        the parameter's shape, naming both.
    """
    left = dict(modulations)

    def put(path, w):
        name = path_name(path)
        if name not in left:
            return w
        delta = left.pop(name)
        for part, shape in _shapes(delta):
            if len(shape) != w.ndim or any(
                a not in (1, b) for a, b in zip(shape, w.shape, strict=True)
            ):
                raise ValueError(
                    f"{name}: a modulation of shape {part.shape} does not fit the "
                    f"parameter's {w.shape}; it was made for another model"
                )
        return Conditioned(w, delta.scales, delta.terms)

    conditioned = jax.tree_util.tree_map_with_path(put, params)
    if left:
        raise ValueError(
            f"no parameter {', '.join(left)} to modulate; the modulations were made "
            "for another model, or for another part of the tree"
        )
    return conditioned


def _shapes(delta: Delta):
    """(part, its shape without the rank) of each part."""
    for scale in delta.scales:
        yield scale, scale.shape
    for term in delta.terms:
        for factor in term:
            yield factor, factor.shape[:-1]


def fold(conditioned: Any, dtype: Any = None) -> Any:
    """Builds plain arrays: one user's own parameters.

    Args:
      conditioned: a tree with `Conditioned` leaves, of one user.
      dtype: of what is built, float32 to keep all of a modulation of bfloat16
        parameters; their own dtype if None. Other leaves stay as they are.
    """
    return jax.tree.map(
        lambda leaf: leaf.materialize(dtype) if is_conditioned(leaf) else leaf,
        conditioned,
        is_leaf=is_conditioned,
    )


def interpolate(start: jax.Array, end: jax.Array, t: jax.Array | float) -> jax.Array:
    """Latents on the line between two users.

    Args:
      start: `[D]`, at t = 0.
      end: `[D]`, at t = 1.
      t: scalar, or `[P]` for a path.

    Returns:
      `[D]` or `[P, D]`; exactly `start` and `end` at 0 and 1.
    """
    t = jnp.asarray(t, jnp.result_type(start, end))[..., None]
    return (1 - t) * start + t * end


def describe(spec: Spec, params: Any, latent_dim: int | None = None) -> None:
    """Prints what is modulated, and what it costs, as a table.

    Args:
      spec: as for `hypernet`.
      params: the parameters, or their `jax.ShapeDtypeStruct`.
      latent_dim: D, or the width of the trunk's last layer; extra parameters are told
        in terms of it if None.

    Raises:
      ValueError: as `hypernet` does, where the spec does not fit.
    """
    rows, learned_sum, users_sum = [], 0, 0
    for path, (modulation, leaf) in resolve(spec, params).items():
        wanted = jax.tree.leaves(parts(path, modulation, leaf.shape))
        learned = sum(math.prod(p.shape) for p in wanted if not p.per_user)
        users = sum(math.prod(p.shape) for p in wanted if p.per_user)
        shape = "x".join(map(str, leaf.shape))
        extra = _extra(learned, users, latent_dim)
        rows.append((path, shape, str(modulation), extra, f"{users:,}"))
        learned_sum, users_sum = learned_sum + learned, users_sum + users
    total = _extra(learned_sum, users_sum, latent_dim)
    rows.append((f"{len(rows)} parameters", "", "", total, f"{users_sum:,}"))
    head = ("path", "shape", "modulation", "extra parameters", "numbers per user")
    print(table([head, *rows]))


def _extra(learned: int, users: int, latent_dim: int | None) -> str:
    if latent_dim is None:
        return f"{learned:,} + {users:,} (D + 1)"
    return f"{learned + users * (latent_dim + 1):,}"
