"""Log-probabilities and embeddings of responses under a frozen language model.

Shapes: I items, F features (the model's width, or twice it), T tokens, B sequences of a
batch.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fsa import bars
from fsa.errors import InputError
from fsa.language.token_table import PaddedTokens, TokenTable
from fsa.language.transformer import Transformer
from fsa.parallel.examples import over_examples, parts_of
from fsa.parallel.preemption import Preemption
from fsa.parallel.sharding import vmap_examples
from fsa.sizes import padded

MEAN, LAST, BOTH = POOLINGS = ("mean", "last", "mean_and_last")

# Batches are padded up to about this many tokens, which take little time; so the few
# choices of a person take one program, whatever their number.
_FEW = 1024


def num_features(model: Transformer, pooling: str) -> int:
    """Returns F, the number of features that a pooling gives a response."""
    return model.width * (2 if pooling == BOTH else 1)


def score_responses(
    model: Transformer,
    variables: Any,
    table: TokenTable,
    *,
    buckets: tuple[int, ...],
    tokens_at_once: int = 16384,
    pooling: str = MEAN,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes log-probabilities and embeddings of responses under a language model.

    Args:
      model: a `Transformer`.
      variables: its variables.
      table: tokens of all items.
      buckets: padded lengths T, ascending; a sequence is padded to the shortest one
        that holds it.
      tokens_at_once: B times T on one device; limits the memory that is taken.
      pooling: the embedding is the final hidden state, as a mean over the response's
        tokens ("mean"), at the last of them ("last"), or both, one after the other
        ("mean_and_last").
      mesh: the mesh that holds the variables, over which sequences are split as well;
        all processes have to call this function then.
      progress: whether to show a bar.

    Returns:
      log pi(response | prompt) `[I]` in nats and embeddings `[I, F]`, float32; zeros
      for items without tokens.

    Raises:
      ValueError: for a pooling of another name.
      InputError: for a sequence longer than all of `buckets`.
      Preempted: in all of several processes, on SIGTERM to any.
      Interrupted: likewise, on Ctrl-C.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is one of {POOLINGS}, not {pooling!r}")
    if (longest := table.length.max(initial=0)) > max(buckets):
        raise InputError(
            f"a prompt with its response has {longest} tokens, more than the largest "
            f"of `buckets` {buckets}; add a larger one or allow fewer tokens"
        )
    run = _scorer(model, pooling, mesh)
    parts = parts_of(mesh)
    log_prob = np.zeros(len(table.start), np.float32)
    shape = len(table.start), num_features(model, pooling)
    features = np.zeros(shape, np.float32)
    total = int((table.length > 0).sum())
    bar = bars.Bar(total, "Scoring responses", "response", shown=progress)
    with bar, _stopping_together() as check:
        for items, size, length in _batches(table, buckets, tokens_at_once, parts):
            check()
            # The last batch repeats its first item, so that it needs no other program.
            full = np.concatenate([items, np.repeat(items[:1], size - len(items))])
            found = run(variables, table.pad(full, length))
            log_prob[items] = found[0][: len(items)]
            features[items] = found[1][: len(items)]
            bar.advance(len(items))
    return log_prob, features


def _batches(
    table: TokenTable, buckets: tuple[int, ...], tokens_at_once: int, parts: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yields (items of a batch, its size, its T); every item with tokens is in one."""
    shorter = 0
    for length in buckets:
        items = np.flatnonzero((table.length > shorter) & (table.length <= length))
        # Few sizes, so that few programs are compiled; few items cost little.
        enough = padded(-(-len(items) // parts), max(1, _FEW // length))
        size = parts * min(max(1, tokens_at_once // length), enough)
        for first in range(0, len(items), size):
            yield items[first : first + size], size, length
        shorter = length


@contextlib.contextmanager
def _stopping_together():
    """Yields a function that raises in all processes after a signal to any.

    All processes call it once a batch. A process that ended alone would leave the
    others waiting in a collective operation.
    """
    if jax.process_count() == 1:
        yield lambda: None
        return

    def check():
        if preemption.stops():
            raise preemption.error("while responses were scored; start it again")

    with Preemption() as preemption:
        yield check


@functools.lru_cache
def _scorer(model: Transformer, pooling: str, mesh: Mesh | None) -> Callable:
    def one(variables, response: PaddedTokens):
        tokens, mask = response.tokens[None], response.is_real[None]
        apply = functools.partial(model.apply, variables, mask=mask)
        states, _ = apply(tokens, method=model.hidden)
        log_probs = apply(states, tokens, method=model.score)[0]
        last = jnp.arange(len(response.tokens)) == response.stop - 1
        wanted = {MEAN: [response.is_response], LAST: [last]}
        wanted[BOTH] = wanted[MEAN] + wanted[LAST]
        parts = []
        for tokens in wanted[pooling]:
            weight = tokens / jnp.maximum(tokens.sum(), 1)
            parts.append(weight @ states[0].astype(jnp.float32))
        embedding = jnp.concatenate(parts)
        return jnp.sum(log_probs, where=response.is_response), embedding

    def run(variables, responses: PaddedTokens):
        return vmap_examples(functools.partial(one, variables))(responses)

    return over_examples(run, mesh)
