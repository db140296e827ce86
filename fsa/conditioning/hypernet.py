"""The hypernetwork, which maps a latent z to modulations of chosen parameters.

    spec = [(".*/kernel", scale() + low_rank(8)), (".*/bias", shift())]
    init, modulate = hypernet(spec, latent_dim=16)
    hyper = init(key, params)
    conditioned = condition(params, modulate(hyper, z))

All functions are pure and take one z. For a batch of examples, each with its own z, use
`jax.vmap` over z and the examples, with params and hyper unmapped.

Shapes: D latent dimensions.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .leaf import Conditioned, Delta, is_conditioned
from .spec import GATES, ZEROS, Spec, parts, path_name, resolve
from .uses import table

Modulations = dict[str, Delta]


class Hypernet(NamedTuple):
    """A pair of pure functions, as in optax.

    Attributes:
      init: `(key, params) -> hyper`, a pytree of float arrays. Raises ValueError if the
        spec does not fit `params`.
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
    zero: str = GATES,
    dtype: Any = jnp.float32,
) -> Hypernet:
    """Makes a hypernetwork that changes nothing until it is trained.

    Args:
      spec: the parameters to modulate and how, see `spec.py`.
      latent_dim: D.
      trunk: widths of hidden layers with GELU between z and all heads; without any,
        modulations are affine in z.
      normalize: whether to divide z by its root mean square first, so that only its
        direction matters.
      zero: what of a learned low rank starts at zero. With "gates" these are the
        numbers s(z), and its factors start random. With "outputs" these are its output
        factors, as in LoRA (Hu et al. 2021), and gates start as random linear maps of
        z: all directions of the output can be learned from the first step on, which
        large models need, while the learning rate of gates need not be higher than that
        of factors.
      dtype: dtype of the hypernetwork's parameters and of modulations, independent of
        the dtype of the modulated parameters.

    Returns:
      (init, apply). A fresh hypernetwork changes nothing: arrays that z decides start
      at zero but for "generated" factors a(z), and gates where `zero` is "outputs".

    Raises:
      ValueError: if `latent_dim` is below 1, or `zero` is neither of the two.
    """
    if zero not in ZEROS:
        raise ValueError(f"`zero` is one of {', '.join(ZEROS)}, not {zero!r}")
    if latent_dim < 1:
        raise ValueError(f"`latent_dim` is at least 1, not {latent_dim}")

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
            # A z of few choices is about as long for any number of dimensions.
            std = part.slope / math.sqrt(width if trunk else 1)
            kernel_key = jax.random.fold_in(part_key, 0)
            kernel = _normal(kernel_key, (width, *part.shape), std, dtype)
            return Head(kernel, start)

        leaves = {}
        for n, (path, (modulation, leaf)) in enumerate(found.items()):
            wanted, treedef = jax.tree.flatten(
                parts(path, modulation, leaf.shape, zero)
            )
            keys = jax.random.split(jax.random.fold_in(key, n), len(wanted))
            leaves[path] = jax.tree.unflatten(treedef, map(array, wanted, keys))
        return {"trunk": layers, "leaves": leaves}

    def apply(hyper, z):
        if z.shape != (latent_dim,):
            raise ValueError(
                f"`z` has shape {z.shape}, not ({latent_dim},); use jax.vmap over "
                "several latents"
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
    """Returns the axes for `jax.vmap` over the modulations of several users.

    They serve to compute modulations of many users once and use them again in a loop:

        axes = user_axes(hyper)
        modulations = jax.vmap(modulate, (None, 0), axes)(hyper, z)  # z [U, D]
        jax.vmap(run_example, (axes, 0))(modulations, x)

    Args:
      hyper: parameters of a hypernetwork.

    Returns:
      Modulations with 0 in place of each array that z decides and None in place of each
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


def condition(
    params: Any, modulations: Modulations, *, segments: jax.Array | None = None
) -> Any:
    """Attaches modulations to parameters.

    Args:
      params: any pytree of arrays. Integers, as quantised weights hold them, are
        modulated as the floats that the model casts them to.
      modulations: {path: Delta}, as a hypernetwork returns them; with `segments`, those
        of S users by `jax.vmap`, each array with an axis of S in front unless all users
        share it (`user_axes`).
      segments: `[T]` integers below S: whose modulations each token of one packed
        example takes. In every product with a conditioned parameter the first axis of
        the other operand has to be these tokens.

    Returns:
      The same tree with a `Conditioned` in place of each modulated parameter.

    Raises:
      ValueError: for a path that `params` does not have, and for a modulation that does
        not fit the parameter's shape; the message names both.
    """
    left = dict(modulations)

    def put(path, w):
        name = path_name(path)
        if name not in left:
            return w
        delta = left.pop(name)
        if segments is not None:
            delta = _segments_last(delta, w.ndim)
        for part, shape in _shapes(delta):
            fits = len(shape) in (w.ndim, w.ndim + (segments is not None))
            if not fits or any(
                a not in (1, b) for a, b in zip(shape, w.shape, strict=False)
            ):
                raise ValueError(
                    f"{name}: a modulation of shape {part.shape} does not fit the "
                    f"parameter's shape {w.shape}; it is of another model"
                )
        return Conditioned(w, delta.scales, delta.terms, segments=segments)

    conditioned = jax.tree_util.tree_map_with_path(put, params)
    if left:
        raise ValueError(
            f"`params` has no {', '.join(left)}; the modulations are of another model, "
            "or of another part of the tree"
        )
    return conditioned


def _segments_last(delta: Delta, ndim: int) -> Delta:
    """Moves the axis of users behind all others, where `Conditioned` expects it."""

    def moved(part, own):
        return part if part.ndim == own else jnp.moveaxis(part, 0, -1)

    return Delta(
        tuple(moved(scale, ndim) for scale in delta.scales),
        tuple(tuple(moved(f, ndim + 1) for f in term) for term in delta.terms),
    )


def _shapes(delta: Delta):
    """Yields each array and its shape without the rank; an axis of segments follows."""
    for scale in delta.scales:
        yield scale, scale.shape
    for term in delta.terms:
        for factor in term:
            yield factor, factor.shape[:-1]


def fold(conditioned: Any, dtype: Any = None) -> Any:
    """Builds one user's parameters as plain arrays.

    Args:
      conditioned: a tree with `Conditioned` leaves, of one user.
      dtype: dtype of the parameters that are built; float32 keeps modulations of
        bfloat16 parameters exact, and is needed for integers and floats of 8 bits,
        to which a modulated value would be rounded.
        None keeps their own dtype. Other leaves do not change.

    Raises:
      ValueError: for quantised weights without a floating `dtype`, and for parameters
        that differ by segment; the message names the parameter.
    """

    def build(path, leaf):
        if not is_conditioned(leaf):
            return leaf
        name = path_name(path)
        if leaf.segments is not None:
            raise ValueError(f"{name} differs by segment; fold one user's modulations")
        rounds = dtype is None or not jnp.issubdtype(dtype, jnp.inexact)
        if leaf.is_integer and rounds:
            raise ValueError(
                f"{name} holds {leaf.dtype.name}, to which a modulated value would be "
                "rounded; give a floating `dtype`, such as `dtype=jnp.float32`"
            )
        return leaf.materialize(dtype)

    return jax.tree_util.tree_map_with_path(build, conditioned, is_leaf=is_conditioned)


def interpolate(start: jax.Array, end: jax.Array, t: jax.Array | float) -> jax.Array:
    """Interpolates between the latents of two users.

    Args:
      start: `[D]`, at t = 0.
      end: `[D]`, at t = 1.
      t: scalar, or `[P]` for a path.

    Returns:
      `[D]` or `[P, D]`; exactly `start` at t = 0 and `end` at t = 1.
    """
    t = jnp.asarray(t, jnp.result_type(start, end))[..., None]
    return (1 - t) * start + t * end


def describe(spec: Spec, params: Any, latent_dim: int | None = None) -> None:
    """Prints a table of the modulated parameters and the numbers that each adds.

    Args:
      spec: as for `hypernet`.
      params: the parameters, or their `jax.ShapeDtypeStruct`.
      latent_dim: D, or the width of the trunk's last layer; if None, the number of
        extra parameters is printed as a formula of D.

    Raises:
      ValueError: if the spec does not fit `params`.
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
