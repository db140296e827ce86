"""`Batcher`: writes texts for several people at once, each at a z of its own.

A thread holds a batch of rows (`fsa.language.row_batch`). A text that is asked for
takes a free row as soon as its prompt is read, and frees it at its end.

Shapes: B rows, P tokens of a prompt with their padding, S slots of the cache, D latent
dimensions, G tokens that are written in one call.
"""

import collections
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fsa.inference.steerer import Steerer
from fsa.language.generation import USER_CACHE, sample
from fsa.language.row_batch import RowBatch, RowPrograms, Rows, Text
from fsa.sizes import FEW_NEW_TOKENS, FEW_TOKENS, padded

_LOG = logging.getLogger(__name__)

BROKEN = "broken"

# G: how many tokens a person waits for before the next ones are shown.
_AT_ONCE = 4
# S of texts of up to 100 and, after prompts of a few sentences, 256 tokens.
_USUAL_SLOTS = (FEW_NEW_TOKENS, 4 * FEW_NEW_TOKENS)
# P of prompts of a few sentences, in the template of a chat.
_USUAL_TOKENS = 128


class Busy(Exception):
    """Too many texts wait to be begun."""


class _Own(NamedTuple):
    """What is of each text: z `[B, D]` and the options of its draws, `[B]`."""

    latent: Any
    temperature: Any
    top_p: Any


@dataclasses.dataclass(eq=False)
class Job(Text):
    """A text that is asked for.

    Attributes:
      prompt: its tokens.
      latent: z `[D]` of the person.
      max_new_tokens: after how many tokens it ends.
      temperature: see `fsa.language.generation.sample`; 0 is greedy.
      top_p: likewise; 1 for all tokens.
      seed: of the draws. With the same prompt, z and options it gives the text of
        `Steerer.write` with this seed.
      emit: is called in the thread of the batcher with new tokens, and with `STOP`,
        `LENGTH` or `BROKEN` at the end, before that with None.
      cancelled: whether nobody waits for the text any more; then it leaves the batch
        before the next tokens are written.
    """

    prompt: Sequence[int]
    latent: np.ndarray
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    emit: Callable[[list[int], str | None], None]
    cancelled: bool = False
    count: int = 0
    # As `Steerer.write` numbers the first text.
    example_id = 0

    @property
    def own(self) -> _Own:
        """See `Text`."""
        return _Own(*map(np.float32, (self.latent, self.temperature, self.top_p)))

    def receive(self, tokens: list[int], end: str | None) -> None:
        """See `Text`."""
        self.emit(tokens, end)


class Batcher:
    """Writes the texts that are asked for, in a thread of its own."""

    def __init__(self, steerer: Steerer, *, rows: int = 8, waiting: int = 32):
        """Starts the thread.

        Args:
          steerer: the policy.
          rows: how many texts are written at once, a power of two.
          waiting: how many more may wait.
        """
        self._programs = _programs(steerer)
        self._variables = steerer.language.variables, steerer.variables["params"]
        self._latent_dim = steerer.policy.reward_model.latent_dim
        self._batch = RowBatch(self._programs, self._variables, _slots_for)
        self._most_rows, self._most_waiting = rows, waiting
        self._queue: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="writing", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Takes a text to write.

        Raises:
          Busy: if too many wait already.
        """
        with self._changed:
            # Those that nobody waits for any more keep nobody else out.
            self._queue = collections.deque(
                each for each in self._queue if not each.cancelled
            )
            if len(self._queue) >= self._most_waiting or self._stopping:
                raise Busy
            self._queue.append(job)
            self._changed.notify()

    def warm_up(self, shortest: int = 1) -> None:
        """Compiles what usual prompts run, with short and with usual texts.

        Args:
          shortest: tokens of the shortest prompt.
        """
        length = padded(shortest, FEW_TOKENS)
        prompts = [self._read_nothing(length)]
        while length < _USUAL_TOKENS:
            length *= 2
            prompts.append(self._read_nothing(length))
        sizes = [1 << i for i in range(padded(self._most_rows).bit_length())]
        for number, slots in enumerate(_USUAL_SLOTS):
            one, *_ = [self._programs.fit(row, slots, 1) for row in prompts]
            for size in sizes:
                rows = self._programs.pick(one, np.zeros(size, int))
                for other in sizes:
                    self._programs.pick(rows, np.zeros(other, int))
                for larger in _USUAL_SLOTS[number:]:
                    self._programs.fit(rows, larger, 1)
                rows = self._programs.put(rows, one, np.zeros(1, int))
                advanced = self._programs.advance(self._variables, rows)
                jax.block_until_ready(advanced)

    def _read_nothing(self, length: int) -> Rows:
        latent = np.zeros(self._latent_dim, np.float32)
        job = Job([0] * length, latent, 1, 1.0, 1.0, 0, lambda *_: None)
        return self._programs.prefill(self._variables, [job], 1)

    def close(self) -> None:
        """Writes what was begun to its end, and ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._queue or self._stopping or self._batch.taken
                )
                if self._stopping and not self._queue and not self._batch.taken:
                    return
            try:
                self._join()
                if self._batch.taken:
                    self._batch.advance()
            except Exception:
                # A batch that cannot be computed must not end all that come later.
                _LOG.exception("texts could not be written")
                for job in filter(None, self._batch.texts):
                    job.emit([], BROKEN)
                self._batch.forget()

    def _join(self) -> None:
        """Lets jobs that wait take free rows."""
        batch = self._batch
        batch.texts = [job and (None if job.cancelled else job) for job in batch.texts]
        while batch.taken < self._most_rows:
            with self._changed:
                job = self._queue.popleft() if self._queue else None
            if job is None:
                break
            if not job.cancelled:
                self._begin(job)
        if not batch.taken:
            batch.forget()
        elif len(batch.texts) > padded(batch.taken):
            batch.resize(padded(batch.taken))

    def _begin(self, job: Job) -> None:
        """Reads a prompt, writes the first token, and gives the row its place."""
        batch = self._batch
        size = padded(batch.taken + 1)
        try:
            if batch.texts and size != len(batch.texts):
                batch.resize(size)
            batch.add([job], 1, 1)
        except Exception:
            _LOG.exception("a text could not be begun")
            job.emit([], BROKEN)


def _programs(steerer: Steerer) -> RowPrograms:
    def decoder_of(variables, own):
        return steerer.decoder(*variables, own.latent)

    return RowPrograms(
        decoder_of, _draw, steerer.language.stop_tokens, USER_CACHE, at_once=_AT_ONCE
    )


def _slots_for(count: int) -> int:
    """Returns the least usual S that holds a text, and beyond them a power of two."""
    usual = [slots for slots in _USUAL_SLOTS if slots >= count]
    return usual[0] if usual else padded(count)


def _draw(keys: jax.Array, logits: jax.Array, own: _Own) -> jax.Array:
    """Draws a token for each row, by its own options."""
    heat = jnp.maximum(own.temperature, 1e-6)[:, None]
    greedy = jax.vmap(functools.partial(sample, temperature=0))(keys, logits)
    drawn = lax.cond(
        (own.top_p < 1).any(),
        lambda: jnp.where(
            own.top_p < 1,
            jax.vmap(lambda key, x, p: sample(key, x, top_p=p))(
                keys, logits / heat, own.top_p
            ),
            jax.vmap(sample)(keys, logits / heat),
        ),
        lambda: jax.vmap(sample)(keys, logits / heat),
    )
    return jnp.where(own.temperature > 0, drawn, greedy)
