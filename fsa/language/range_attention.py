"""Attention in which each token sees one range of tokens, for texts that share a row.

A row of tokens holds several texts, one after the other. A token attends to itself and
to the tokens before it, back to the first of its text or of its window. Products of
queries and keys are computed block by block, and only for blocks in which some token
sees another, so that a row costs what its texts cost, however long it is. No array of
all products exists, in gradients neither (Dao et al. 2022, Rabe & Staats 2021).

It is written in plain operations with loops whose length depends on the ranges, for
CPUs; other devices have kernels of their own.

Shapes: T tokens, N query heads, K key and value heads, H features of a head, C tokens
of a block, G = N / K.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class _Settings(NamedTuple):
    scale: float
    soft_cap: float | None
    block: int


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    first: jax.Array,
    *,
    scale: float,
    soft_cap: float | None = None,
    block: int = 128,
) -> jax.Array:
    """Computes causal attention over ranges of tokens.

    Args:
      query: `[T, N, H]`.
      key: `[T, K, H]`, where K divides N.
      value: `[T, K, H]`.
      first: `[T]` int32; token t attends to the tokens from `first[t]` to t.
      scale: factor of the products of queries and keys.
      soft_cap: c in c * tanh(product / c).
      block: C, tokens whose products are computed at once.

    Returns:
      `[T, N, H]`, in the dtype of `value`.
    """
    length = len(query)
    block = min(block, length)
    longer = -length % block

    def padded(x):
        return jnp.pad(x, ((0, longer), (0, 0), (0, 0)))

    # A token that is filled in sees itself alone.
    first = jnp.concatenate([first, jnp.arange(length, length + longer)])
    settings = _Settings(scale, soft_cap, block)
    out = _attend(*map(padded, (query, key, value)), first, settings)
    return out[:length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query, key, value, first, settings):
    return _forward(query, key, value, first, settings)[0]


def _forward(query, key, value, first, settings):
    """Returns the output, and what the backward pass needs."""
    queries = _query_blocks(query, key.shape[1], settings.block)
    keys, values = (_blocks(x, settings.block) for x in (key, value))
    first = first.reshape(-1, settings.block)
    lowest = jnp.finfo(jnp.float32).min

    def of_queries(at):
        own = queries[at]

        def add(other, carry):
            peak, total, sums = carry
            products, seen = _products(own, keys[other], first[at], at, other, settings)
            new = jnp.maximum(peak, products.max(-1, where=seen, initial=lowest))
            weights = jnp.where(seen, jnp.exp(products - new[..., None]), 0)
            shrink = jnp.exp(peak - new)
            found = jnp.einsum(
                "kqs,ksh->kqh",
                weights.astype(value.dtype),
                values[other],
                preferred_element_type=jnp.float32,
            )
            total = total * shrink + weights.sum(-1)
            return new, total, sums * shrink[..., None] + found

        rows = own.shape[:-1]
        start = jnp.full(rows, lowest), jnp.zeros(rows), jnp.zeros(own.shape)
        begin = first[at].min() // settings.block
        peak, total, sums = lax.fori_loop(begin, at + 1, add, start)
        return sums / total[..., None], peak + jnp.log(total)

    out, log_total = lax.map(of_queries, jnp.arange(len(queries)))
    out = _from_query_blocks(out, settings.block).astype(value.dtype)
    return out, (query, key, value, first, out, log_total)


def _backward_rule(settings, saved, gradient):
    query, key, value, first, out, log_total = saved
    queries = _query_blocks(query, key.shape[1], settings.block)
    keys, values = (_blocks(x, settings.block) for x in (key, value))
    gradients, outs = (
        _query_blocks(x, key.shape[1], settings.block) for x in (gradient, out)
    )
    # The softmax's own part of the gradient of products (Dao et al. 2022, eq. 4).
    shared = jnp.einsum(
        "bkqh,bkqh->bkq", gradients, outs, preferred_element_type=jnp.float32
    )

    def of_queries(carry, at):
        own, own_gradient = queries[at], gradients[at]

        def add(other, carry):
            of_query, of_keys, of_values = carry
            products, seen = _products(own, keys[other], first[at], at, other, settings)
            log_weights = products - log_total[at][..., None]
            weights = jnp.where(seen, jnp.exp(log_weights), 0)
            of_value = jnp.einsum(
                "kqs,kqh->ksh",
                weights.astype(value.dtype),
                own_gradient,
                preferred_element_type=jnp.float32,
            )
            of_weights = jnp.einsum(
                "kqh,ksh->kqs",
                own_gradient,
                values[other],
                preferred_element_type=jnp.float32,
            )
            of_products = weights * (of_weights - shared[at][..., None])
            if settings.soft_cap is not None:
                of_products *= 1 - (products / settings.soft_cap) ** 2
            of_products = (settings.scale * of_products).astype(query.dtype)
            of_query += jnp.einsum(
                "kqs,ksh->kqh",
                of_products,
                keys[other],
                preferred_element_type=jnp.float32,
            )
            of_key = jnp.einsum(
                "kqs,kqh->ksh", of_products, own, preferred_element_type=jnp.float32
            )
            return (
                of_query,
                _added(of_keys, of_key, other),
                _added(of_values, of_value, other),
            )

        begin = first[at].min() // settings.block
        start = jnp.zeros(own.shape), *carry
        of_query, *carry = lax.fori_loop(begin, at + 1, add, start)
        return tuple(carry), of_query

    start = jnp.zeros(keys.shape), jnp.zeros(values.shape)
    of_keys_and_values, of_queries_ = lax.scan(
        of_queries, start, jnp.arange(len(queries))
    )
    of_key, of_value = map(_from_blocks, of_keys_and_values)
    return (
        _from_query_blocks(of_queries_, settings.block).astype(query.dtype),
        of_key.astype(key.dtype),
        of_value.astype(value.dtype),
        None,
    )


_attend.defvjp(_forward, _backward_rule)


def _products(queries, keys, first, at, other, settings):
    """Returns the products of two blocks `[K, G C, C]`, and which of them count."""
    block = settings.block
    products = settings.scale * jnp.einsum(
        "kqh,ksh->kqs", queries, keys, preferred_element_type=jnp.float32
    )
    if settings.soft_cap is not None:
        products = settings.soft_cap * jnp.tanh(products / settings.soft_cap)
    own = at * block + jnp.arange(block)
    others = other * block + jnp.arange(block)
    seen = (first[:, None] <= others) & (others <= own[:, None])
    return products, jnp.tile(seen, (queries.shape[1] // block, 1))


def _added(blocks, block, index):
    total = lax.dynamic_index_in_dim(blocks, index, 0, keepdims=False) + block
    return lax.dynamic_update_index_in_dim(blocks, total, index, 0)


def _blocks(x, block):
    """Returns keys or values `[T, K, H]` as `[T / C, K, C, H]`."""
    return x.reshape(-1, block, *x.shape[1:]).swapaxes(1, 2)


def _from_blocks(x):
    x = x.swapaxes(1, 2)
    return x.reshape(-1, *x.shape[2:])


def _query_blocks(x, num_kv_heads, block):
    """Returns queries `[T, N, H]` as `[T / C, K, G C, H]`, by the heads they share."""
    _, heads, features = x.shape
    x = x.reshape(-1, block, num_kv_heads, heads // num_kv_heads, features)
    return x.transpose(0, 2, 3, 1, 4).reshape(len(x), num_kv_heads, -1, features)


def _from_query_blocks(x, block):
    number, kv_heads, rows, features = x.shape
    x = x.reshape(number, kv_heads, rows // block, block, features)
    return x.transpose(0, 3, 1, 2, 4).reshape(number * block, -1, features)
