"""`LanguageModel`: a transformer with its tokenizer, from texts to texts.

Shapes: B examples, G tokens of a response.
"""

import dataclasses
import functools
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fsa import bars
from fsa.errors import InputError
from fsa.language import huggingface, poolings
from fsa.language.generation import (
    USER_CACHE,
    Decoder,
    cache_axes,
    decoder,
    generate,
    left_pad,
    sample,
)
from fsa.language.huggingface import architecture
from fsa.language.poolings import MEAN
from fsa.language.row_batch import RowPrograms, Text, write_all
from fsa.language.scoring import embed_responses, score_responses
from fsa.language.token_table import TokenTable
from fsa.language.tokenization import Tokenization, Unusable
from fsa.language.transformer import (
    SHARDING_RULES,
    Transformer,
    unstacked,
    with_biases,
)
from fsa.parallel.examples import over_examples, parts_of
from fsa.parallel.sharding import place, sharding_of, shardings
from fsa.sizes import (
    FEW_NEW_TOKENS,
    FEW_PROMPTS,
    FEW_TOKENS,
    closely_padded,
    padded,
)

_LOG = logging.getLogger(__name__)

# Texts of fewer tokens wait for the longest of their batch: refilling takes more
# programs to compile, 5 s more where 3,200 texts of up to 40 tokens took 8 s.
_REFILLED = 128


class Written(NamedTuple):
    """Generated responses.

    Attributes:
      texts: B texts.
      table: tokens of the B prompts and responses, the end included.
    """

    texts: list[str]
    table: TokenTable


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A `Transformer` with its variables and its tokenizer; takes and returns texts.

    Attributes:
      model: the transformer.
      variables: its variables.
      tokenization: turns texts into tokens, and tokens into texts.
      folder: the Hugging Face folder that it was loaded from.
      examples_at_once: how many texts a device generates together; limits the memory
        that is taken.
      mesh: the mesh over which variables and examples are split, if any; all processes
        must then make the same calls.
    """

    model: Transformer
    variables: Any
    tokenization: Tokenization
    folder: str
    examples_at_once: int = 64
    mesh: Mesh | None = None

    @classmethod
    def load(
        cls,
        folder: str,
        *,
        dtype: str | None = None,
        examples_at_once: int = 64,
        mesh: Mesh | None = None,
        **options: Any,
    ) -> "LanguageModel":
        """Loads a Hugging Face folder.

        Args:
          folder: the Hugging Face folder of the model.
          dtype: see `huggingface.load`.
          examples_at_once: see the class.
          mesh: see the class; each device loads only its own parts of the variables.
          **options: options of `Tokenization`.

        Raises:
          InputError: if the folder cannot be loaded, its tokenizer has tokens that the
            model does not embed, or its chat template cannot be used.
        """
        tokenization = Tokenization(huggingface.load_tokenizer(folder), **options)
        # Before the weights are read, which may take minutes.
        config = architecture.read_config(folder)
        size = architecture.arguments(config, f"{folder}/config.json")["vocab_size"]
        try:
            tokenization.check(size)
        except InputError as error:
            raise InputError(f"{folder}: {error}") from error
        split = None
        if mesh is not None:
            split = functools.partial(sharding_of, mesh=mesh, rules=SHARDING_RULES)
        model, variables = huggingface.load(folder, dtype=dtype, sharding=split)
        return cls(model, variables, tokenization, folder, examples_at_once, mesh)

    def with_biases(self, names: Sequence[str]) -> "LanguageModel":
        """Returns the same model with biases on these maps; new ones are zero."""
        model, variables = with_biases(self.model, self.variables, names)
        if self.mesh is not None:
            variables = place(
                variables, shardings(variables, self.mesh, SHARDING_RULES)
            )
        return dataclasses.replace(self, model=model, variables=variables)

    @functools.cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text.

        By the generation config, by the tokenizer, and those with which responses end
        in training.
        """
        tokenization = self.tokenization
        ends = tokenization.tokenizer.eos_token_id, tokenization.end_token
        found = {*huggingface.stop_tokens(self.folder), *ends}
        return tuple(sorted(found - {None}))

    def warn_of_length(self, length: int) -> None:
        """Warns once if the model has seen no texts of `length` tokens in training."""
        longest = architecture.read_config(self.folder).get("max_position_embeddings")
        if isinstance(longest, int) and length > longest:
            _warn(
                f"{self.folder}: texts are longer than the {longest} tokens that the "
                "model was trained on (`max_position_embeddings`); what it makes of "
                "the rest means little"
            )

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of prompts.

        Raises:
          InputError: naming a prompt that is empty, too long or cannot be read.
        """
        return [
            _named("prompt", number, text, self.tokenization.prompt, text)
            for number, text in enumerate(texts)
        ]

    def pairs(self, texts: Sequence[tuple[str, str]]) -> TokenTable:
        """Returns the tokens of (prompt, response) pairs.

        Raises:
          InputError: naming a prompt or response that cannot be used.
        """
        pair = self.tokenization.pair
        found = [
            _named("response", number, response, pair, prompt, response)
            for number, (prompt, response) in enumerate(texts)
        ]
        return TokenTable.of([([*p, *r], len(p)) for p, r in found])

    def score(
        self,
        table: TokenTable,
        *,
        pooling: str = MEAN,
        buckets: tuple[int, ...] = (),
        progress: bool = False,
        kept: pathlib.Path | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Computes log-probabilities and features of responses.

        Args:
          table: tokens of B prompts and responses.
          pooling: what features are made of, one of `poolings.POOLINGS`.
          buckets: padded lengths, such as those of training; there is another one for
            examples that are longer.
          progress: whether to show a bar.
          kept: see `score_responses`.

        Returns:
          log pi(response | prompt) `[B]` in nats and features `[B, F]`, float32; zeros
          for items without tokens.
        """
        self.warn_of_length(int(table.length.max()))
        log_prob, states = score_responses(
            self.model,
            self.variables,
            table,
            buckets=buckets_for(table, buckets),
            pooling=pooling,
            mesh=self.mesh,
            progress=progress,
            kept=kept,
        )
        return log_prob, self._with_texts(states, table, pooling)

    def embed(
        self,
        table: TokenTable,
        *,
        pooling: str = MEAN,
        buckets: tuple[int, ...] = (),
        tokens_at_once: int | None = None,
    ) -> np.ndarray:
        """Computes features of responses, `[B, F]`, without their log-probabilities.

        Args:
          table: see `score`.
          pooling: see `score`.
          buckets: see `score`.
          tokens_at_once: see `score_responses`.
        """
        self.warn_of_length(int(table.length.max()))
        states = embed_responses(
            self.model,
            self.variables,
            table,
            buckets=buckets_for(table, buckets),
            tokens_at_once=tokens_at_once,
            pooling=pooling,
            mesh=self.mesh,
        )
        return self._with_texts(states, table, pooling)

    def _with_texts(
        self, states: np.ndarray, table: TokenTable, pooling: str
    ) -> np.ndarray:
        """Adds to the states of responses what the pooling measures in their texts.

        A text is what the tokens spell: of a response that was cut, the part that is
        left.
        """
        if not poolings.reads_text(pooling):
            return states
        real = np.flatnonzero(table.length)
        pairs = (np.split(table[item], [table.start[item]]) for item in real)
        texts = [self.tokenization.text(*map(np.ndarray.tolist, p)) for p in pairs]
        found = poolings.features_of_texts(pooling, texts)
        measured = np.zeros((len(table.start), found.shape[1]), np.float32)
        measured[real] = found
        return np.concatenate([states, measured], axis=1)

    def write(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        progress: bool = False,
        what: str = "Writing",
        decoder_of: Callable[[Any, Any, Any], Decoder] | None = None,
        shared: Any = None,
        per_example: Any = None,
    ) -> Written:
        """Generates a response to each prompt.

        Args:
          prompts: B texts, or messages as JSON.
          max_new_tokens: G.
          temperature: see `generate`.
          top_k: see `generate`.
          top_p: see `generate`.
          seed: seed of all draws. A response depends only on its prompt, the values of
            `per_example` at its position, its position and the seed.
          progress: whether to show a bar with tokens a second.
          what: what the bar says.
          decoder_of: makes the decoder from the model's variables, `shared`, and the
            values of `per_example` for a part of the batch; the plain model if None.
          shared: tree of arrays that all examples share.
          per_example: tree of arrays `[B, ...]`.

        Raises:
          InputError: naming a prompt that is empty, too long or cannot be read.
        """
        tokens = self.prompts(prompts)
        if max_new_tokens < 1:
            raise InputError(f"`max_new_tokens` is {max_new_tokens}; give at least 1")
        longest = max(map(len, tokens))
        self.warn_of_length(longest + max_new_tokens)
        bar = bars.Bar(len(tokens), what, "text", shown=progress)
        begin, generated = time.perf_counter(), 0

        def show(new: list[int]) -> None:
            nonlocal generated
            generated += len(new)
            rate = generated / (time.perf_counter() - begin)
            bar.advance(tokens=f"{rate:.0f}/s")

        # Once, as arrays of a device would be fetched for every text.
        per_example = jax.tree.map(np.asarray, per_example)
        texts = [
            _Text(
                prompt,
                jax.tree.map(lambda x, i=i: x[i], per_example),
                max_new_tokens,
                seed,
                i,
                show,
            )
            for i, prompt in enumerate(tokens)
        ]
        options = decoder_of, temperature, top_k, top_p
        if self._are_few(texts) or max_new_tokens < _REFILLED:
            self._write_in_batches(texts, shared, *options)
        else:
            self._write_in_turn(texts, shared, *options)
        bar.close()
        pairs = [(text.prompt, text.tokens) for text in texts]
        return Written(
            [self.tokenization.text(*pair) for pair in pairs],
            TokenTable.of([([*p, *r], len(p)) for p, r in pairs]),
        )

    def _are_few(self, texts: Sequence["_Text"]) -> bool:
        """Returns whether texts fit into one batch."""
        return len(texts) <= self.examples_at_once * parts_of(self.mesh)

    def _write_in_batches(self, texts: Sequence["_Text"], shared, *options) -> None:
        """Writes one batch after the other, all by one program."""
        length = max(len(text.prompt) for text in texts)
        limit = most = texts[0].max_new_tokens
        if self._are_few(texts):
            # To write so few texts takes less time than to compile for their lengths.
            length, most = padded(length, FEW_TOKENS), padded(most, FEW_NEW_TOKENS)
        run, variables = self._writer(most, *options)
        for index, real in self.parts(len(texts)):
            batch = [texts[i] for i in index]
            prompts, mask = left_pad([text.prompt for text in batch], length=length)
            own = jax.tree.map(lambda *x: np.stack(x), *(text.own for text in batch))
            examples = own, prompts, mask, index
            found = run(variables, shared, texts[0].seed, limit, examples)
            for text, tokens, kept in zip(batch[:real], *found, strict=False):
                text.take(tokens[kept].tolist(), self.stop_tokens)

    def _write_in_turn(self, texts: Sequence["_Text"], shared, *options) -> None:
        """Writes many texts; those that end make room for others."""
        programs, variables = self._row_programs(*options)
        rows = self.examples_at_once * parts_of(self.mesh)
        write_all(programs, (variables, shared), texts, rows)

    def _for(self, decoder_of) -> tuple[Transformer, Any]:
        """The model and its variables, without `decoder_of` as they decode fastest."""
        return self._apart if decoder_of is None else (self.model, self.variables)

    @functools.cached_property
    def _apart(self) -> tuple[Transformer, Any]:
        if self.mesh is None and jax.default_backend() == "cpu":
            return unstacked(self.model, self.variables)
        return self.model, self.variables

    def parts(self, size: int):
        """Yields (indices, how many of them count) of equally large parts of a batch.

        The last part is filled up with the first example, so that all parts have one
        of a few sizes and run one compiled program.
        """
        devices = parts_of(self.mesh)
        few = padded(-(-size // devices), FEW_PROMPTS)
        at_once = min(self.examples_at_once, few) * devices
        for first in range(0, size, at_once):
            index = np.arange(first, first + at_once)
            yield np.where(index < size, index, 0), min(at_once, size - first)

    @functools.lru_cache  # noqa: B019  (few objects a process, and few programs)
    def _writer(self, max_new_tokens, decoder_of, temperature, top_k, top_p):
        model, variables = self._for(decoder_of)
        run = writer(
            model,
            decoder_of,
            self.mesh,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop_tokens=self.stop_tokens,
        )
        return run, variables

    @functools.lru_cache  # noqa: B019  (as above)
    def _row_programs(self, decoder_of, temperature, top_k, top_p):
        model, variables = self._for(decoder_of)

        def decode(variables, own):
            return _decoder(model, decoder_of, *variables, own)

        def draw(keys, logits, own):
            del own
            options = dict(temperature=temperature, top_k=top_k, top_p=top_p)
            return jax.vmap(functools.partial(sample, **options))(keys, logits)

        axes = USER_CACHE if decoder_of else cache_axes(model)
        programs = RowPrograms(decode, draw, self.stop_tokens, axes, mesh=self.mesh)
        return programs, variables


@dataclasses.dataclass(eq=False)
class _Text(Text):
    """A text that `LanguageModel.write` writes.

    Attributes:
      prompt: see `Text`.
      own: see `Text`.
      max_new_tokens: see `Text`.
      seed: see `Text`.
      example_id: see `Text`.
      ended: is called with all tokens at the end.
      tokens: those that are there.
    """

    prompt: list[int]
    own: Any
    max_new_tokens: int
    seed: int
    example_id: int
    ended: Callable[[list[int]], None]
    count: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)

    def receive(self, tokens: list[int], end: str | None) -> None:
        """See `Text`."""
        self.tokens += tokens
        if end is not None:
            self.ended(self.tokens)


def _decoder(model: Transformer, decoder_of, variables, shared, own) -> Decoder:
    """Makes the decoder of some examples, see `LanguageModel.write`."""
    if decoder_of is None:
        return decoder(model, variables)
    return decoder_of(variables, shared, own)


def writer(
    model: Transformer,
    decoder_of: Callable[[Any, Any, Any], Decoder] | None,
    mesh: Mesh | None,
    **options: Any,
) -> Callable:
    """Compiles what generates a part of a batch, see `over_examples`.

    Args:
      model: the language model.
      decoder_of: see `LanguageModel.write`.
      mesh: the mesh over which examples are split, if any.
      **options: options of `generate`, such as `max_new_tokens`.

    Returns:
      `(variables, shared, seed, limit, examples) -> Generated`, with `examples` a tuple
      of the values of `per_example`, prompts `[B, T]`, their mask and the numbers of
      the examples.
    """

    def run(variables, shared, seed, limit, examples):
        per_example, prompts, mask, example_ids = examples
        return generate(
            _decoder(model, decoder_of, variables, shared, per_example),
            prompts,
            mask,
            jax.random.key(seed),
            limit=limit,
            example_ids=example_ids,
            **options,
        )

    return over_examples(run, mesh)


def buckets_for(table: TokenTable, buckets: tuple[int, ...]) -> tuple[int, ...]:
    """Adds a longer padded length if an item is longer than all of them."""
    longest = int(table.length.max())
    if longest <= max(buckets, default=0):
        return buckets
    return (*buckets, closely_padded(longest, FEW_TOKENS))


@functools.cache
def _warn(message: str) -> None:
    _LOG.warning(message)


def _named(kind: str, number: int, text: str, fn: Callable, *arguments) -> Any:
    try:
        return fn(*arguments)
    except Unusable as error:
        shown = text if len(text) <= 30 else f"{text[:30]}…"
        raise InputError(f"{kind} {number} ({shown!r}): {error}") from error
