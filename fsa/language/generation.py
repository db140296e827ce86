"""Generates tokens for many prompts at once, each for a user of its own if wanted.

A `Decoder` is a model with its parameters. `decoder` makes one with the same parameters
for all examples, plain or conditioned on one user; `user_decoder` makes one in which
every example has its own user. `generate` is a pure function of either; call it under
`jax.jit`:

    @jax.jit
    def run(variables, modulations, prompts, mask, key):
        users = user_decoder(model, variables, modulations, user_axes(hyper))
        return generate(users, prompts, mask, key, max_new_tokens=64)

Shapes: B examples, T tokens of the prompts with their padding, S slots of a cache,
G tokens to generate, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fsa.conditioning import Modulations, bridge, condition
from fsa.errors import InputError
from fsa.language.transformer import Cache, Transformer, init_cache
from fsa.parallel.sharding import vmap_examples

# Axes of the examples in the cache of `user_decoder`, as `jax.vmap` takes them: all
# caches are filled to the same index.
USER_CACHE = Cache(keys=0, values=0, mask=0, index=None)


class Decoder(NamedTuple):
    """A model and its parameters, as two functions.

    Attributes:
      init_cache: `(B, S) -> cache`, an empty cache of any type.
      step: `(tokens [B, T], mask [B, T], cache) -> (logits [B, V], cache)`, the logits
        of the token after the last one. Prefill and decoding are the same call.
    """

    init_cache: Callable[[int, int], Any]
    step: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


class Generated(NamedTuple):
    """Generated tokens.

    Attributes:
      tokens: `[B, G]` int32, the pad token after the end of an example.
      mask: `[B, G]`, true for generated tokens, a stop token included.
    """

    tokens: jax.Array
    mask: jax.Array


def decoder(model: Transformer, variables: Any) -> Decoder:
    """Makes a decoder with the same parameters for every example.

    Args:
      model: the language model.
      variables: as `model.apply` takes them; leaves may be `Conditioned` on one user.
    """
    step = bridge(_bind(model), strict=True)
    return Decoder(
        lambda batch, length: init_cache(model, batch, length),
        lambda tokens, mask, cache: step(variables, tokens, mask, cache),
    )


def cache_axes(model: Transformer) -> Cache:
    """Returns the axes of the examples in the cache of `decoder`."""
    return Cache(int(model.stacked), int(model.stacked), mask=0, index=None)


def user_decoder(
    model: Transformer, variables: Any, modulations: Modulations, axes: Modulations
) -> Decoder:
    """Makes a decoder in which every example has the parameters of a user of its own.

    Parameters without a modulation are shared by all examples.

    Args:
      model: the language model.
      variables: as `model.apply` takes them, unconditioned.
      modulations: of B users, `[B, ...]` where `axes` is 0.
      axes: see `fsa.conditioning.user_axes`.
    """
    step = bridge(_bind(model), strict=True)

    def one(modulations, tokens, mask, cache):
        conditioned = condition(variables, modulations)
        logits, cache = step(conditioned, tokens[None], mask[None], cache)
        return logits[0], cache

    def empty(batch, length):
        stack = jax.vmap(lambda _: init_cache(model, 1, length), 0, USER_CACHE)
        return stack(jnp.arange(batch))

    users = vmap_examples(one, (axes, 0, 0, USER_CACHE), (0, USER_CACHE))
    return Decoder(
        empty, lambda tokens, mask, cache: users(modulations, tokens, mask, cache)
    )


def _bind(model: Transformer) -> Callable:
    """Makes `(variables, tokens, mask, cache) -> (logits of the last token, cache)`."""

    def last(model, tokens, mask, cache):
        states, cache = model.hidden(tokens, mask=mask, cache=cache)
        return model.unembed(states[:, -1]), cache

    return lambda variables, *inputs: model.apply(variables, *inputs, method=last)


def left_pad(
    prompts: Sequence[Sequence[int]], *, pad_token: int = 0, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Puts prompts of several lengths into one array, padding on the left.

    Args:
      prompts: B lists of tokens.
      pad_token: the token to pad with.
      length: T; that of the longest prompt if None.

    Returns:
      (tokens `[B, T]` int32, mask `[B, T]`).

    Raises:
      InputError: for no prompts, an empty one, or one that is longer than `length`.
    """
    if not prompts:
        raise InputError("prompts: there are none; give at least one")
    length = length or max(1, *map(len, prompts))
    tokens = np.full((len(prompts), length), pad_token, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= length:
            raise InputError(
                f"prompt {i}: has {len(prompt)} tokens; give 1 to {length}"
            )
        tokens[i, -len(prompt) :] = prompt
        mask[i, -len(prompt) :] = True
    return tokens, mask


class _State(NamedTuple):
    """State of the generation loop.

    Attributes:
      index: `[]`, number of tokens that each example has.
      generated: these tokens.
      done: `[B]`, true for examples that have produced a stop token.
      cache: of the decoder.
    """

    index: jax.Array
    generated: Generated
    done: jax.Array
    cache: Any


def generate(
    decoder: Decoder,
    prompts: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    max_new_tokens: int,
    limit: jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    pad_token: int = 0,
    example_ids: jax.Array | None = None,
) -> Generated:
    """Generates until every example has produced a stop token, or for G tokens.

    The text of an example depends on its prompt, its id and the key, and neither on
    padding nor on the other examples.

    Args:
      decoder: the model with its parameters.
      prompts: `[B, T]` int32, padded on the left.
      mask: `[B, T]`, true where a token is real.
      key: random key of all draws.
      max_new_tokens: G.
      limit: a number of tokens, 1 to G, after which generation stops; G if None. It may
        be traced, so that one program serves several numbers of tokens.
      temperature: logits are divided by it; 0 takes the most probable token.
      top_k: draw only from this many most probable tokens.
      top_p: draw only from the fewest most probable tokens whose probabilities, among
        the tokens that `top_k` leaves, sum to at least this (Holtzman et al. 2020).
      stop_tokens: tokens that end an example.
      pad_token: the token after the end.
      example_ids: `[B]` int32, which together with the key decide an example's draws;
        0 to B - 1 if None.

    Raises:
      InputError: for an option out of range, or shapes that do not fit.
    """
    _check(prompts, mask, max_new_tokens, temperature, top_k, top_p)
    batch, length = prompts.shape
    example_ids = jnp.arange(batch) if example_ids is None else example_ids
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_ids)
    stops = jnp.asarray(stop_tokens, jnp.int32)
    limit = max_new_tokens if limit is None else limit

    def write(state: _State, logits, cache) -> _State:
        def choose(key, logits):
            key = jax.random.fold_in(key, state.index)
            return sample(
                key, logits, temperature=temperature, top_k=top_k, top_p=top_p
            )

        chosen = jnp.where(state.done, pad_token, jax.vmap(choose)(keys, logits))
        tokens, written = state.generated
        generated = Generated(
            tokens.at[:, state.index].set(chosen),
            written.at[:, state.index].set(~state.done),
        )
        done = state.done | jnp.isin(chosen, stops)
        return _State(state.index + 1, generated, done, cache)

    def unfinished(state: _State):
        return (state.index < limit) & ~state.done.all()

    def advance(state: _State) -> _State:
        last = lax.dynamic_index_in_dim(state.generated.tokens, state.index - 1, 1)
        return write(state, *decoder.step(last, ~state.done[:, None], state.cache))

    nothing = Generated(
        jnp.full((batch, max_new_tokens), pad_token, jnp.int32),
        jnp.zeros((batch, max_new_tokens), bool),
    )
    # The last token is never fed back and needs no slot.
    cache = decoder.init_cache(batch, length + max_new_tokens - 1)
    start = _State(jnp.zeros((), jnp.int32), nothing, jnp.zeros(batch, bool), cache)
    prefilled = write(start, *decoder.step(prompts, mask, cache))
    return lax.while_loop(unfinished, advance, prefilled).generated


def sample(
    key: jax.Array,
    logits: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
    """Draws one token from logits `[V]`; options as for `generate`."""
    if temperature == 0:
        return jnp.argmax(logits).astype(jnp.int32)
    logits = logits / temperature
    if top_k is None and top_p is None:
        return _categorical(key, logits)
    size = len(logits)
    logits, tokens = lax.top_k(logits, size if top_k is None else min(top_k, size))
    if top_p is not None:
        probabilities = jax.nn.softmax(logits)
        before = jnp.cumsum(probabilities) - probabilities
        logits = jnp.where(before < top_p, logits, -jnp.inf)
    return tokens[_categorical(key, logits)]


def _categorical(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Draws what `jax.random.categorical` does for logits `[V]`, int32.

    On a CPU it takes half the time for 64 examples of 49,152 logits.
    """
    noisy = jax.random.gumbel(key, logits.shape, logits.dtype) + logits
    return jnp.argmax(noisy == noisy.max()).astype(jnp.int32)


def _check(prompts, mask, max_new_tokens, temperature, top_k, top_p) -> None:
    if prompts.ndim != 2 or prompts.shape != mask.shape or not prompts.size:
        raise InputError(
            f"prompts have shape {prompts.shape}, mask {mask.shape}; give both as "
            "[examples, tokens]"
        )
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; give at least 1")
    if temperature < 0:
        raise InputError(f"temperature is {temperature}; give 0 or more")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k is {top_k}; give at least 1, or None for all")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; give more than 0 and at most 1")
