"""One user's modulations as LoRA factors, and back.

Serving engines add a low-rank update to a linear map, w + sum_r a_r b_r (LoRA; Hu et
al. 2021), and hold such an adapter for each user. Modulations of low rank are adapters
exactly; `scale` is none, and has a nearest one.

Adapters are combined by concatenating their ranks. Averages of a and of b would be
something else, since the update is their product.

Shapes: L stacked layers (1 if the parameter is not stacked), I inputs, O outputs, R
rank; I and O are products of the parameter's input and output axes, in its order.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .hypernet import Modulations
from .leaf import Conditioned, Delta
from .spec import Modulation, Spec, axes_of, resolve


class Lora(NamedTuple):
    """A low-rank update of one parameter, as a pytree: w + a @ b.

    Attributes:
      a: `[L, I, R]`.
      b: `[L, R, O]`.
    """

    a: jax.Array
    b: jax.Array

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[-1]


def to_lora(spec: Spec, params: Any, modulations: Modulations) -> dict[str, Lora]:
    """Converts one user's modulations to LoRA factors, exactly.

    Args:
      spec: of the hypernetwork that made the modulations.
      params: the modulated parameters, or their `jax.ShapeDtypeStruct`.
      modulations: {path: Delta} of one user.

    Returns:
      {path: factors}.

    Raises:
      ValueError: for modulations that are no low-rank update of an input times an
        output axis, such as scales, and shifts of biases; the message names all.
    """
    found, others = {}, []
    for path, (modulation, leaf) in resolve(spec, params).items():
        try:
            found[path] = _factors(path, modulation, leaf.shape, modulations[path])
        except _NoLora as error:
            others.append(f"{path} has {error}")
    if others:
        raise ValueError(
            f"no LoRA adapter: {'; '.join(others)}; only low ranks of maps are one; "
            "`fold` gives the parameters as a whole, `nearest` the nearest adapter"
        )
    return found


class _NoLora(Exception):
    """A modulation that is no low-rank update."""


def _factors(path, modulation: Modulation, shape, delta: Delta) -> Lora:
    if delta.scales:
        raise _NoLora("a scale")
    axes = axes_of(path, modulation, shape)
    if not (axes["input"] and axes["output"]):
        raise _NoLora("no input and output axes")
    parts = []
    for term in delta.terms:
        rank = max(factor.shape[-1] for factor in term)
        a = b = jnp.ones((1,) * (len(shape) + 1))
        for factor in term:
            of_input = any(factor.shape[i] > 1 for i in axes["input"])
            if of_input and any(factor.shape[i] > 1 for i in axes["output"]):
                raise _NoLora("a shift along all axes")
            a, b = (a * factor, b) if of_input else (a, b * factor)
        parts.append(
            Lora(
                _flat(a, axes, "input", shape, rank),
                jnp.swapaxes(_flat(b, axes, "output", shape, rank), 1, 2),
            )
        )
    return concatenate(parts)


def _flat(factor, axes: dict, side: str, shape, rank: int) -> jax.Array:
    """Returns a factor as `[L, size of a side, R]`."""
    kept = [*axes["stacked"], *sorted(axes[side])]
    full = [n if i in kept else 1 for i, n in enumerate(shape)]
    factor = jnp.broadcast_to(factor, (*full, rank))
    order = [*kept, *(i for i in range(len(shape)) if i not in kept), len(shape)]
    layers = math.prod(shape[i] for i in axes["stacked"])
    return factor.transpose(order).reshape(layers, -1, rank)


def from_lora(spec: Spec, params: Any, adapter: dict[str, Lora]) -> Modulations:
    """Converts LoRA factors to modulations, the inverse of `to_lora`.

    For several users, use `jax.vmap` over the factors.

    Args:
      spec: patterns and layouts of the parameters; which modulations it names does not
        matter.
      params: the parameters, or their `jax.ShapeDtypeStruct`.
      adapter: {path: factors} of one user.

    Raises:
      ValueError: for a path that the spec does not modulate, and for factors that do
        not fit the parameter; the message names it.
    """
    known = resolve(spec, params)
    if left := adapter.keys() - known.keys():
        raise ValueError(f"the spec modulates no {', '.join(sorted(left))}")
    found = {}
    for path, lora in adapter.items():
        modulation, leaf = known[path]
        axes = axes_of(path, modulation, leaf.shape)
        wide = _unflat(lora.a, path, axes, "input", leaf.shape)
        b = jnp.swapaxes(lora.b, 1, 2)
        found[path] = Delta(
            terms=((wide, _unflat(b, path, axes, "output", leaf.shape)),)
        )
    return found


def _unflat(factor: jax.Array, path, axes: dict, side: str, shape) -> jax.Array:
    """Returns `[L, size of a side, R]` with the parameter's axes, and R at the end."""
    kept = [*axes["stacked"], *sorted(axes[side])]
    sizes = [shape[i] for i in kept]
    layers = math.prod(shape[i] for i in axes["stacked"])
    if factor.shape[:2] != (layers, math.prod(shape[i] for i in axes[side])):
        raise ValueError(
            f"{path}: factors of shape {factor.shape} do not fit the {side} axes of "
            f"{shape}; the adapter is of another model"
        )
    factor = factor.reshape(*sizes, -1)
    order = [kept.index(i) for i in sorted(kept)]
    factor = factor.transpose(*order, len(kept))
    return jnp.expand_dims(factor, [i for i in range(len(shape)) if i not in kept])


def nearest(
    spec: Spec, params: Any, modulations: Modulations, rank: int
) -> tuple[dict[str, Lora], dict[str, jax.Array]]:
    """Finds the nearest LoRA factors of one user's modulations of any kind.

    Args:
      spec: of the hypernetwork that made the modulations.
      params: the modulated parameters.
      modulations: {path: Delta} of one user.
      rank: R, of each adapter.

    Returns:
      {path: factors}, by the singular value decomposition of each update, and {path:
      error}: the norm of what is left of the update, as a share of its norm.

    Raises:
      ValueError: for parameters without an input and an output axis, such as biases.
    """
    found, errors = {}, {}
    for path, (modulation, leaf) in resolve(spec, params).items():
        axes = axes_of(path, modulation, leaf.shape)
        if not (axes["input"] and axes["output"]):
            raise ValueError(
                f"{path} has no input and output axes, so it takes no LoRA"
            )
        delta = modulations[path]
        update = Conditioned(jnp.zeros_like(leaf), (), delta.terms).materialize(
            jnp.float32
        )
        scaled = Conditioned(leaf, delta.scales).materialize(jnp.float32)
        update += scaled - leaf
        order = [*axes["stacked"], *sorted(axes["input"]), *sorted(axes["output"])]
        layers = math.prod(leaf.shape[i] for i in axes["stacked"])
        inputs = math.prod(leaf.shape[i] for i in axes["input"])
        flat = update.transpose(order).reshape(layers, inputs, -1)
        # One layer after another: a batch of decompositions can hang on few cores.
        u, s, v = jax.lax.map(lambda w: jnp.linalg.svd(w, full_matrices=False), flat)
        kept = slice(rank)
        found[path] = Lora(u[..., kept] * s[:, None, kept], v[:, kept])
        left = jnp.sum(s[:, rank:] ** 2)
        errors[path] = jnp.sqrt(left / jnp.maximum(jnp.sum(s**2), 1e-30))
    return found, errors


def concatenate(adapters: Sequence[Lora], weights: Sequence[float] = ()) -> Lora:
    """Adds low-rank updates of one parameter; their ranks add.

    Args:
      adapters: the factors of each.
      weights: what each update is multiplied by; 1 if none are given. (1 - t, t) of two
        people's adapters is the update at t between theirs.
    """
    weights = weights or [1.0] * len(adapters)
    scaled = [w * lora.b for w, lora in zip(weights, adapters, strict=True)]
    a = jnp.concatenate([lora.a for lora in adapters], axis=-1)
    return Lora(a, jnp.concatenate(scaled, axis=1))


def pad(lora: Lora, rank: int) -> Lora:
    """Adds ranks of zeros up to `rank`, since engines take a few ranks only.

    Raises:
      ValueError: if the adapter has more.
    """
    more = rank - lora.rank
    if more < 0:
        raise ValueError(f"`rank`={rank}: the adapter has rank {lora.rank}")
    return Lora(
        jnp.pad(lora.a, [(0, 0), (0, 0), (0, more)]),
        jnp.pad(lora.b, [(0, 0), (0, more), (0, 0)]),
    )
