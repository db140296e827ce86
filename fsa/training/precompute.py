"""What the frozen language model says of all responses, computed once.

Shapes: I items, F features (the model's width), T tokens, B sequences at a time.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fsa.data.responses import Padded, TokenTable
from fsa.errors import InputError
from fsa.models.transformer import Transformer

MEAN, LAST = POOLINGS = ("mean", "last")


def score_responses(
    model: Transformer,
    variables: Any,
    table: TokenTable,
    *,
    buckets: tuple[int, ...],
    tokens_at_once: int = 16384,
    pooling: str = MEAN,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and embeddings of responses under a language model.

    Args:
      model: a `Transformer`.
      variables: its variables.
      table: the items' tokens.
      buckets: lengths T that sequences are padded to, ascending.
      tokens_at_once: B times T, a matter of memory.
      pooling: the embedding is the final hidden state, as a mean over the response's
        tokens ("mean"), or at the last of them ("last").
      progress: show a bar.

    Returns:
      log pi(response | prompt) `[I]` in nats and embeddings `[I, F]`, float32; zeros
      for items without tokens.

    Raises:
      ValueError: for a pooling of another name.
      InputError: for a sequence longer than all buckets.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is one of {POOLINGS}, not {pooling!r}")
    if (longest := table.length.max(initial=0)) > max(buckets):
        raise InputError(
            f"a prompt with its response has {longest} tokens, more than the largest "
            f"of the buckets {buckets}; add a larger one or allow fewer tokens"
        )
    run = _scorer(model, pooling)
    log_prob = np.zeros(len(table.start), np.float32)
    features = np.zeros((len(table.start), model.width), np.float32)
    bar = tqdm(
        total=int((table.length > 0).sum()),
        unit="response",
        desc="Reference",
        disable=not progress,
    )
    shorter = 0
    for bucket in buckets:
        inside = (table.length > shorter) & (table.length <= bucket)
        items = np.flatnonzero(inside)
        # Of few sizes, so that there are few programs and a few choices cost little.
        enough = 1 << max(len(items) - 1, 0).bit_length()
        size = min(max(1, tokens_at_once // bucket), enough)
        for first in range(0, len(items), size):
            some = items[first : first + size]
            # Filled up with the first, so that the last part needs no program.
            full = np.concatenate([some, np.repeat(some[:1], size - len(some))])
            found = jax.device_get(run(variables, table.pad(full, bucket)))
            log_prob[some] = found[0][: len(some)]
            features[some] = found[1][: len(some)]
            bar.update(len(some))
        shorter = bucket
    bar.close()
    return log_prob, features


@functools.lru_cache
def _scorer(model: Transformer, pooling: str) -> Callable:
    @jax.jit
    def run(variables, responses: Padded):
        apply = functools.partial(model.apply, variables, mask=responses.is_real)
        states, _ = apply(responses.tokens, method=model.hidden)
        log_probs = apply(states, responses.tokens, method=model.score)
        wanted = responses.is_response
        if pooling == LAST:
            position = jnp.arange(responses.tokens.shape[-1])
            wanted = position == responses.stop[:, None] - 1
        weight = wanted / jnp.maximum(wanted.sum(-1, keepdims=True), 1)
        embedding = jnp.einsum("bt,btf->bf", weight, states.astype(jnp.float32))
        return jnp.sum(log_probs, axis=-1, where=responses.is_response), embedding

    return run
