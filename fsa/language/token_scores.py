"""Log-probabilities of some tokens of a row, without an array of all logits.

Logits are computed for a block of tokens at a time, and only for tokens whose
log-probability is wanted. The log-probability of a token is one number of its state, so
where the unembedding is not trained, the forward pass computes that number's gradient
beside it, while the logits are at hand; the backward pass then only scales it. So
logits are computed once in all, where recomputing them in the backward pass would take
half as many operations again.

Shapes: T tokens, W width, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Logits that are held at once.
_LOGITS_AT_ONCE = 2**22


class _Settings(NamedTuple):
    soft_cap: float | None
    block: int


def token_log_probs(
    states: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    wanted: jax.Array,
    *,
    soft_cap: float | None = None,
    block: int | None = None,
) -> jax.Array:
    """Computes log softmax(kernel @ state)[target] of the tokens that are wanted.

    Args:
      states: `[T, W]`.
      kernel: `[V, W]`.
      targets: `[T]` int32, below V.
      wanted: `[T]` bool.
      soft_cap: c in c * tanh(logit / c).
      block: number of tokens whose logits are held at once; by default as many as have
        4 million.

    Returns:
      `[T]` float32, in nats; 0 for tokens that are not wanted.
    """
    block = block or max(8, _LOGITS_AT_ONCE // len(kernel))
    settings = _Settings(soft_cap, min(block, len(states)))
    arrays = map(jnp.asarray, (states, kernel, targets, wanted))
    return _scores(*arrays, settings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _scores(states, kernel, targets, wanted, settings):
    def score(at, scores):
        index = _tokens(at, plan, settings)
        found, _ = _of_block(states[index], kernel, targets[index], settings)
        return lax.dynamic_update_slice(scores, found, (at * settings.block,))

    plan = _plan(wanted, settings)
    scores = lax.fori_loop(0, plan.blocks, score, jnp.zeros(len(plan.order)))
    return _in_place(scores, plan, wanted)


class _Plan(NamedTuple):
    """The wanted tokens first, in whole blocks.

    Attributes:
      order: `[T + padding]`, index of the token at each place.
      rank: `[T]`, the place of each token.
      blocks: number of blocks that hold wanted tokens.
    """

    order: jax.Array
    rank: jax.Array
    blocks: jax.Array


def _plan(wanted, settings):
    order = jnp.argsort(~wanted, stable=True)
    rank = jnp.argsort(order)
    blocks = -(-wanted.sum() // settings.block)
    order = jnp.pad(order, (0, -len(order) % settings.block))
    return _Plan(order, rank, blocks)


def _tokens(at, plan, settings):
    """Returns the indices of a block's tokens."""
    return lax.dynamic_slice(plan.order, (at * settings.block,), (settings.block,))


def _in_place(values, plan, wanted):
    """Puts values, ordered as in the plan, where their tokens are; 0 elsewhere."""
    mask = wanted.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(mask, values[plan.rank], 0)


def _of_block(states, kernel, targets, settings):
    """Returns log-probs, and their gradients by the products with the kernel."""
    logits = jnp.einsum("tw,vw->tv", states, kernel, preferred_element_type="float32")
    if settings.soft_cap is not None:
        logits = settings.soft_cap * jnp.tanh(logits / settings.soft_cap)
    # A sum, since indexing a vocabulary that is split over devices would gather it.
    is_target = jnp.arange(len(kernel)) == targets[:, None]
    chosen = jnp.sum(logits, axis=-1, where=is_target)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    slopes = is_target - jnp.exp(logits - log_total[:, None])
    if settings.soft_cap is not None:
        slopes *= 1 - (logits / settings.soft_cap) ** 2
    return chosen - log_total, slopes


def _forward_rule(states, kernel, targets, wanted, settings):
    trained = kernel.perturbed
    states, kernel, targets, wanted = (
        x.value for x in (states, kernel, targets, wanted)
    )
    if trained:
        scores = _scores(states, kernel, targets, wanted, settings)
        return scores, (None, (states, kernel, targets), wanted)
    plan = _plan(wanted, settings)

    def score(at, carry):
        scores, gradients = carry
        index = _tokens(at, plan, settings)
        found, slopes = _of_block(states[index], kernel, targets[index], settings)
        gradient = jnp.einsum(
            "tv,vw->tw",
            slopes.astype(kernel.dtype),
            kernel,
            preferred_element_type=jnp.float32,
        )
        place = at * settings.block
        return (
            lax.dynamic_update_slice(scores, found, (place,)),
            lax.dynamic_update_slice(gradients, gradient, (place, 0)),
        )

    length = len(plan.order)
    start = jnp.zeros(length), jnp.zeros((length, states.shape[1]))
    scores, gradients = lax.fori_loop(0, plan.blocks, score, start)
    gradients = _in_place(gradients, plan, wanted).astype(states.dtype)
    return _in_place(scores, plan, wanted), (gradients, None, wanted)


def _backward_rule(settings, saved, gradient):
    gradients, arguments, wanted = saved
    if arguments is None:
        return gradient[:, None].astype(gradients.dtype) * gradients, None, None, None
    states, kernel, targets = arguments
    plan = _plan(wanted, settings)
    gradient = jnp.where(wanted, gradient, 0)

    def add(at, carry):
        of_states, of_kernel = carry
        index = _tokens(at, plan, settings)
        own, place = states[index], at * settings.block
        _, slopes = _of_block(own, kernel, targets[index], settings)
        # Places behind the last token repeat the first one.
        real = place + jnp.arange(settings.block) < len(wanted)
        slopes *= jnp.where(real, gradient[index], 0)[:, None]
        of_own = slopes.astype(kernel.dtype) @ kernel
        of_kernel += jnp.einsum(
            "tv,tw->vw",
            slopes.astype(own.dtype),
            own,
            preferred_element_type=jnp.float32,
        )
        return lax.dynamic_update_slice(of_states, of_own, (place, 0)), of_kernel

    length = len(plan.order)
    start = jnp.zeros((length, states.shape[1]), kernel.dtype), jnp.zeros(kernel.shape)
    of_states, of_kernel = lax.fori_loop(0, plan.blocks, add, start)
    of_states = _in_place(of_states, plan, wanted).astype(states.dtype)
    return of_states, of_kernel.astype(kernel.dtype), None, None


_scores.defvjp(_forward_rule, _backward_rule, symbolic_zeros=True)
