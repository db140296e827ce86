"""A language model in use: texts in, texts out, many at once.

Shapes: B rows, T tokens of a prompt, G tokens of a response.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from fsa.errors import InputError
from fsa.language import huggingface
from fsa.language.generation import Decoder, decoder, generate, left_pad
from fsa.language.scoring import MEAN, score_responses
from fsa.language.token_table import TokenTable
from fsa.language.tokenization import Tokenization, Unusable
from fsa.language.transformer import Transformer


class Written(NamedTuple):
    """Responses that were generated.

    Attributes:
      texts: B texts.
      table: tokens of the B prompts and responses, end included.
    """

    texts: list[str]
    table: TokenTable


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model with its tokenizer.

    Attributes:
      model: the model.
      variables: its variables.
      tokenization: how texts become tokens.
      folder: where it came from.
      examples_at_once: of generation and scoring, a matter of memory.
    """

    model: Transformer
    variables: Any
    tokenization: Tokenization
    folder: str
    examples_at_once: int = 64

    @classmethod
    def load(
        cls,
        folder: str,
        *,
        dtype: str | None = None,
        sharding: huggingface.Shardings | None = None,
        examples_at_once: int = 64,
        **options: Any,
    ) -> "LanguageModel":
        """Loads a Hugging Face folder.

        Args:
          folder: of the model.
          dtype: see `huggingface.load`.
          sharding: see `huggingface.load`.
          examples_at_once: see the class.
          **options: of `Tokenization`.

        Raises:
          InputError: for what is wrong with the folder.
        """
        tokenizer = huggingface.load_tokenizer(folder)
        model, variables = huggingface.load(folder, dtype=dtype, sharding=sharding)
        tokenization = Tokenization(tokenizer, **options)
        return cls(model, variables, tokenization, folder, examples_at_once)

    @functools.cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text: those of the generation config and the tokenizer."""
        config = huggingface.load_generation_config(self.folder)
        ends = np.ravel([config.eos_token_id]).tolist()
        ends.append(self.tokenization.tokenizer.eos_token_id)
        return tuple({end for end in ends if end is not None})

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of prompts.

        Raises:
          InputError: for one that is empty or too long, naming it.
        """
        return [
            _named("prompt", number, text, self.tokenization.prompt, text)
            for number, text in enumerate(texts)
        ]

    def pairs(self, texts: Sequence[tuple[str, str]]) -> TokenTable:
        """Tokens of prompts with responses.

        Raises:
          InputError: for one that cannot be used, naming it.
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
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities and embeddings of responses, see `score_responses`.

        Args:
          table: B rows.
          pooling: of embeddings.
          buckets: lengths to pad to, as those that training used; a power of two for
            what is longer.
        """
        return score_responses(
            self.model,
            self.variables,
            table,
            buckets=buckets_for(table, buckets),
            pooling=pooling,
            progress=False,
        )

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
        decoder_of: Callable[[Any, Any, Any], Decoder] | None = None,
        shared: Any = None,
        rows: Any = None,
    ) -> Written:
        """Answers prompts.

        Args:
          prompts: B texts, or messages as JSON.
          max_new_tokens: G.
          temperature: see `generate`.
          top_k: see there.
          top_p: see there.
          seed: of all draws; what a row gets depends on nothing but its prompt, its
            own inputs, its position and the seed.
          progress: show a bar, with tokens a second.
          decoder_of: makes the decoder from the model's variables, `shared` and the
            `rows` of a part of the batch; the plain model if None.
          shared: arrays.
          rows: arrays `[B, ...]`.

        Raises:
          InputError: for a prompt that is empty or too long, naming it.
        """
        tokens = self.prompts(prompts)
        options = max_new_tokens, temperature, top_k, top_p
        run = self._writer(decoder_of, *options)
        longest = max(map(len, tokens))
        written = []
        bar = tqdm(total=len(tokens), unit="text", disable=not progress)
        begin, generated = time.perf_counter(), 0
        for index, real in self.parts(len(tokens)):
            padded, mask = left_pad([tokens[i] for i in index], length=longest)
            own = jax.tree.map(lambda x, i=index: np.asarray(x)[i], rows)
            found = run(self.variables, shared, own, padded, mask, index, seed)
            pairs = zip(*jax.device_get(found), strict=True)
            written += [row[kept].tolist() for row, kept in pairs][:real]
            generated += sum(map(len, written[-real:]))
            rate = generated / (time.perf_counter() - begin)
            bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
            bar.update(real)
        bar.close()
        pairs = list(zip(tokens, written, strict=True))
        return Written(
            [self.tokenization.text(*pair) for pair in pairs],
            TokenTable.of([([*p, *r], len(p)) for p, r in pairs]),
        )

    def parts(self, size: int):
        """Yields (indices, how many count) of parts of a batch, all of one size.

        The last is filled up with the first row, so that there is one program.
        """
        at_once = min(self.examples_at_once, size)
        for first in range(0, size, at_once):
            index = np.arange(first, first + at_once)
            yield np.where(index < size, index, 0), min(at_once, size - first)

    @functools.lru_cache  # noqa: B019  (an object a process, and few programs)
    def _writer(self, decoder_of, max_new_tokens, temperature, top_k, top_p):
        @jax.jit
        def run(variables, shared, rows, prompts, mask, example_ids, seed):
            if decoder_of is None:
                decode = decoder(self.model, variables)
            else:
                decode = decoder_of(variables, shared, rows)
            return generate(
                decode,
                prompts,
                mask,
                jax.random.key(seed),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                stop_tokens=self.stop_tokens,
                example_ids=example_ids,
            )

        return run


def buckets_for(table: TokenTable, buckets: tuple[int, ...]) -> tuple[int, ...]:
    """Those given, and a power of two where a row is longer than all of them."""
    longest = int(table.length.max())
    if longest <= max(buckets, default=0):
        return buckets
    return (*buckets, 1 << (longest - 1).bit_length())


def _named(kind: str, number: int, text: str, fn: Callable, *arguments) -> Any:
    try:
        return fn(*arguments)
    except Unusable as error:
        raise InputError(f"{kind} {number} ({text[:30]!r}): {error}") from error
