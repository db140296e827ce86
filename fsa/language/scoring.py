"""Log-probabilities and embeddings of responses under a frozen language model.

Shapes: I items, F features (the model's width for each hidden state of the pooling), T
tokens, B sequences of a batch.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fsa import bars
from fsa.errors import InputError
from fsa.language import poolings
from fsa.language.kept_rows import KeptRows
from fsa.language.poolings import LAST, MEAN
from fsa.language.token_table import PaddedTokens, TokenTable
from fsa.language.transformer import Transformer
from fsa.parallel.examples import over_examples, parts_of
from fsa.parallel.preemption import Preemption
from fsa.parallel.sharding import vmap_examples

# Tokens of a large batch. A CPU computes as fast with few, and the logits of a large
# vocabulary take 0.2 MB a token.
_MANY, _MANY_ON_CPU = 16384, 2048
# Tokens of a small batch. What does not fill a large one is computed in batches of this
# size, so that little is padding and the choices of a person run one program.
_FEW = 1024


def score_responses(
    model: Transformer,
    variables: Any,
    table: TokenTable,
    *,
    buckets: tuple[int, ...],
    tokens_at_once: int | None = None,
    pooling: str = MEAN,
    mesh: Mesh | None = None,
    progress: bool = True,
    kept: pathlib.Path | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes log-probabilities and embeddings of responses under a language model.

    Args:
      model: a `Transformer`.
      variables: its variables.
      table: tokens of all items.
      buckets: padded lengths T, ascending; a sequence is padded to the shortest one
        that holds it.
      tokens_at_once: B times T on one device; limits the memory that is taken. By
        default 16,384, and 2,048 on a CPU.
      pooling: one of `poolings.POOLINGS`; its hidden states, one after the other, are
        the embedding.
      mesh: the mesh that holds the variables, over which sequences are split as well;
        all processes have to call this function then.
      progress: whether to show a bar.
      kept: a folder for what was computed, so that another call goes on where one was
        interrupted; for one process alone.

    Returns:
      log pi(response | prompt) `[I]` in nats and embeddings `[I, F]`, float32; zeros
      for items without tokens.

    Raises:
      ValueError: for a pooling of another name.
      InputError: for a sequence longer than all of `buckets`.
      Preempted: in all of several processes, on SIGTERM to any.
      Interrupted: likewise, on Ctrl-C.
    """
    states = poolings.states_of(pooling)
    run = _scorer(model, states, True, mesh)
    found = in_batches(
        lambda _, tokens: run(variables, tokens),
        table,
        1 + model.width * len(states),
        buckets=buckets,
        tokens_at_once=tokens_at_once,
        mesh=mesh,
        progress=progress,
        kept=kept,
    )
    return found[:, 0].copy(), found[:, 1:].copy()


def embed_responses(
    model: Transformer,
    variables: Any,
    table: TokenTable,
    *,
    buckets: tuple[int, ...],
    tokens_at_once: int | None = None,
    pooling: str = MEAN,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Computes the embeddings of responses alone, as `score_responses` does.

    Logits, a fifth of a small model's time and most of its memory, are not computed,
    and items of the same tokens are embedded once.

    Args:
      model: a `Transformer`.
      variables: its variables.
      table: tokens of all items.
      buckets: see `score_responses`.
      tokens_at_once: see `score_responses`.
      pooling: see `score_responses`.
      mesh: see `score_responses`.
      progress: whether to show a bar.

    Returns:
      Embeddings `[I, F]`, float32; zeros for items without tokens.

    Raises:
      ValueError: for a pooling of another name.
      InputError: for a sequence longer than all of `buckets`.
    """
    states = poolings.states_of(pooling)
    if not states:
        return np.zeros((len(table.start), 0), np.float32)
    _, first, kinds = np.unique(table.kinds, return_index=True, return_inverse=True)
    run = _scorer(model, states, False, mesh)
    found = in_batches(
        lambda _, tokens: run(variables, tokens),
        TokenTable.of([(table[item], table.start[item]) for item in first]),
        model.width * len(states),
        buckets=buckets,
        tokens_at_once=tokens_at_once,
        mesh=mesh,
        progress=progress,
    )
    return found[kinds]


def in_batches(
    run: Callable[[np.ndarray, PaddedTokens], np.ndarray],
    table: TokenTable,
    width: int,
    *,
    buckets: tuple[int, ...],
    tokens_at_once: int | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
    kept: pathlib.Path | None = None,
) -> np.ndarray:
    """Computes numbers of all items, in batches with little padding.

    Args:
      run: computes those of a batch, `[B, width]`, from the indices of its items `[B]`
        and their tokens; it is called with few sizes of a batch.
      table: see `score_responses`, as all that follow.
      width: how many numbers an item has.
      buckets: padded lengths.
      tokens_at_once: B times T on one device.
      mesh: over which sequences are split.
      progress: whether to show a bar.
      kept: a folder for what was computed.

    Returns:
      `[I, width]` float32; zeros for items without tokens.

    Raises:
      InputError: for a sequence longer than all of `buckets`.
    """
    if tokens_at_once is None:
        on_cpu = jax.default_backend() == "cpu"
        tokens_at_once = _MANY_ON_CPU if on_cpu else _MANY
    if (longest := table.length.max(initial=0)) > max(buckets):
        raise InputError(
            f"a prompt with its response has {longest} tokens, more than the largest "
            f"of `buckets` {buckets}; add a larger one or allow fewer tokens"
        )
    parts = parts_of(mesh)
    found = np.full((len(table.start), width), np.nan, np.float32)
    found[table.length == 0] = 0
    total = int((table.length > 0).sum())
    bar = bars.Bar(total, "Scoring responses", "response", shown=progress)
    with bar, _stopping_together() as check, KeptRows(kept) as keeper:
        keeper.read_into(found)
        for items, size, length in _batches(table, buckets, tokens_at_once, parts):
            check()
            if np.isnan(found[items]).any():
                # The last batch repeats its first item, to need no other program.
                full = np.concatenate([items, np.repeat(items[:1], size - len(items))])
                found[items] = run(full, table.pad(full, length))[: len(items)]
                keeper.add(items, found[items])
            bar.advance(len(items))
    return found


def _batches(
    table: TokenTable, buckets: tuple[int, ...], tokens_at_once: int, parts: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yields (items of a batch, its size, its T); every item with tokens is in one."""
    shorter = 0
    for length in buckets:
        items = np.flatnonzero((table.length > shorter) & (table.length <= length))
        # Two sizes, so that few programs are compiled and little is padding.
        large = parts * max(1, tokens_at_once // length)
        small = min(large, parts * max(1, _FEW // length))
        whole = len(items) - len(items) % large
        for first in range(0, whole, large):
            yield items[first : first + large], large, length
        for first in range(whole, len(items), small):
            yield items[first : first + small], small, length
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
def _scorer(
    model: Transformer,
    states: tuple[str, ...],
    with_log_probs: bool,
    mesh: Mesh | None,
) -> Callable:
    """Makes `(variables, tokens [B]) -> [B, 1 + F]`, log-probabilities coming first.

    Without log-probabilities it is `[B, F]`.
    """

    def one(variables, response: PaddedTokens):
        tokens, mask = response.tokens[None], response.is_real[None]
        apply = functools.partial(model.apply, variables, mask=mask)
        hidden, _ = apply(tokens, method=model.hidden)
        last = jnp.arange(len(response.tokens)) == response.stop - 1
        pooled = {MEAN: response.is_response, LAST: last}
        parts = []
        for state in states:
            weight = pooled[state] / jnp.maximum(pooled[state].sum(), 1)
            parts.append(weight @ hidden[0].astype(jnp.float32))
        if with_log_probs:
            log_probs = apply(hidden, tokens, method=model.score)[0]
            total = jnp.sum(log_probs, where=response.is_response)
            parts.insert(0, total[None])
        return jnp.concatenate(parts)

    def run(variables, responses: PaddedTokens):
        return vmap_examples(functools.partial(one, variables))(responses)

    return over_examples(run, mesh)
