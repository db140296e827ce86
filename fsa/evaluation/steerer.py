"""A trained policy in use: a person's choices in, text as that person likes it out.

```python
from fsa.evaluation.steerer import Steerer

steerer = Steerer.load("runs/demo-policy")
z = steerer.latent([(prompt, chosen, rejected), ...])  # [] for nobody in particular
print(steerer.write([prompt], z[None]))
steerer.export(z, "models/mine")  # a plain Hugging Face folder
```

Shapes: N context choices, D latent dimensions, B rows to write, F features, T tokens of
a prompt, G tokens of a response.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from fsa.conditioning import fold, user_axes
from fsa.data import responses
from fsa.data.responses import TokenTable
from fsa.data.tokens import Tokenization, Unusable
from fsa.episodes import Choices, Options
from fsa.errors import InputError
from fsa.models import hf
from fsa.models.generate import decoder, generate, left_pad, user_decoder
from fsa.models.hf_config import read_config
from fsa.models.policy import INFERRED, Policy, response_log_probs
from fsa.models.reward import RewardModel
from fsa.training.checkpoint import VARIABLES, Checkpoints
from fsa.training.precompute import score_responses


class Written(NamedTuple):
    """Responses that were generated.

    Attributes:
      texts: B texts.
      table: tokens of the B prompts and responses, end included.
    """

    texts: list[str]
    table: TokenTable


@dataclasses.dataclass(frozen=True, eq=False)
class Steerer:
    """A policy with all that it takes to use it.

    Attributes:
      policy: the policy.
      variables: its own.
      base: those of its language model.
      tokenization: how texts become tokens.
      folder: of the language model.
      pooling: of option embeddings, see `score_responses`.
      buckets: lengths that sequences are padded to, ascending.
      rows_at_once: of generation and scoring, a matter of memory.
    """

    policy: Policy
    variables: Any
    base: Any
    tokenization: Tokenization
    folder: str
    pooling: str
    buckets: tuple[int, ...]
    rows_at_once: int = 64

    @classmethod
    def load(cls, workdir: epath.PathLike) -> "Steerer":
        """Loads the best checkpoint of a run, and the language model it was trained on.

        Raises:
          InputError: if the run has no sound checkpoint or is of no policy, or if its
            language model is gone or another one by now.
        """
        checkpoints = Checkpoints(
            epath.Path(workdir).absolute() / "checkpoints", read_only=True
        )
        step = checkpoints.best_step
        if step is None:
            raise InputError(f"{workdir}: no sound checkpoint there; train it first")
        meta = checkpoints.meta(step)
        if "language_model" not in meta:
            raise InputError(f"{workdir}: a run of a reward model; name a policy's")
        settings = meta["language_model"]
        digest = responses.digest(settings["path"])
        if digest != settings["digest"]:
            raise InputError(
                f"{settings['path']}: another language model by now than the one that "
                f"{workdir} was trained on; put that one back"
            )
        model, base = hf.load(settings["path"], dtype=settings["dtype"])
        options = dict(meta["policy"])
        options["modulations"] = tuple(map(tuple, options["modulations"]))
        options["trunk"] = tuple(options["trunk"])
        policy = Policy(model, RewardModel(**meta["model"]), **options)
        like = jax.eval_shape(lambda: policy.init(jax.random.key(0), base, model.width))
        variables = checkpoints.restore(step, {VARIABLES: like})[VARIABLES]
        checkpoints.close()
        tokenizer = hf.load_tokenizer(settings["path"])
        return cls(
            policy,
            variables,
            base,
            Tokenization(tokenizer, **meta["tokenization"]),
            settings["path"],
            meta["pooling"],
            tuple(meta["buckets"]),
        )

    def latent(self, choices: Sequence[tuple[str, str, str]]) -> np.ndarray:
        """z of the person who made these choices.

        Args:
          choices: N of (prompt, chosen, rejected); none for what most people prefer.

        Returns:
          `[D]`.

        Raises:
          InputError: for a choice with an empty text or too long a prompt, and for a
            policy that infers nothing.
        """
        if self.policy.latent != INFERRED:
            raise InputError(f"this policy's latent is {self.policy.latent!r}: it does")
        pairs = [(prompt, text) for prompt, *both in choices for text in both]
        features = self._features(pairs)
        context = Choices(
            *(
                Options(side, np.full(len(side), -1, np.int32))
                for side in (features[::2], features[1::2])
            ),
            np.ones(len(choices), bool),
        )
        return np.asarray(self.policy.encode(self.variables, context).mean)

    def latents(self, contexts: Choices, groups: np.ndarray) -> np.ndarray:
        """z of several users, `[U, D]`, from contexts `[U, N]` and groups `[U]`."""
        return np.asarray(self._latents(self.variables, contexts, groups))

    @functools.cached_property
    def _latents(self):
        return jax.jit(jax.vmap(self.policy.latent_of, (None, 0, 0)))

    def _features(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        width = self.policy.language_model.width
        if not pairs:
            return np.zeros((0, width), np.float32)
        return self._score(self.tokenize(pairs), self.base)[1]

    def tokenize(self, pairs: Sequence[tuple[str, str]]) -> TokenTable:
        """Tokens of (prompt, response) texts.

        Raises:
          InputError: for one that cannot be used, naming it.
        """
        items = []
        for number, (prompt, text) in enumerate(pairs):
            try:
                before, after = self.tokenization.pair(prompt, text)
            except Unusable as error:
                raise InputError(f"text {number} ({text[:30]!r}): {error}") from error
            items.append(([*before, *after], len(before)))
        return TokenTable.of(items)

    def _score(self, table: TokenTable, variables: Any):
        return score_responses(
            self.policy.language_model,
            variables,
            table,
            buckets=self._buckets(table),
            pooling=self.pooling,
            progress=False,
        )

    def _buckets(self, table: TokenTable) -> tuple[int, ...]:
        """Also for what is longer than what was trained on."""
        longest = int(table.length.max())
        doubled = 1 << (longest - 1).bit_length()
        return self.buckets + ((doubled,) if longest > max(self.buckets) else ())

    def write(
        self,
        prompts: Sequence[str],
        latents: np.ndarray | None,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Written:
        """Answers prompts, each for a person of its own.

        Args:
          prompts: B texts, or messages as JSON.
          latents: `[B, D]`; None for the language model itself.
          max_new_tokens: G.
          temperature: see `generate`, as the following.
          top_k: see there.
          top_p: see there.
          seed: of all draws; what a row gets depends on nothing but its prompt, its
            latent, its position and the seed.

        Raises:
          InputError: for a prompt that is empty or too long, naming it.
        """
        tokens = []
        for number, prompt in enumerate(prompts):
            try:
                tokens.append(self.tokenization.prompt(prompt))
            except Unusable as error:
                raise InputError(f"prompt {number} ({prompt[:30]!r}): {error}") from (
                    error
                )
        run = self._writer(max_new_tokens, temperature, top_k, top_p)
        longest = max(map(len, tokens))
        rows, at_once = [], min(self.rows_at_once, len(tokens))
        for first in range(0, len(tokens), at_once):
            # Filled up with the first, so that there is one program.
            index = np.arange(first, first + at_once)
            index = np.where(index < len(tokens), index, 0)
            padded, mask = left_pad([tokens[i] for i in index], length=longest)
            z = None if latents is None else jnp.asarray(latents)[index]
            found = jax.device_get(
                run(self.variables, self.base, z, padded, mask, index, seed)
            )
            real = min(at_once, len(tokens) - first)
            rows += [t[m].tolist() for t, m in zip(*found, strict=True)][:real]
        table = TokenTable.of(
            [([*p, *r], len(p)) for p, r in zip(tokens, rows, strict=True)]
        )
        decode = self.tokenization.tokenizer.decode
        texts = [decode(row, skip_special_tokens=True).strip() for row in rows]
        return Written(texts, table)

    @functools.cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text: those of the generation config and the tokenizer."""
        config = hf.load_generation_config(self.folder)
        ends = np.ravel([config.eos_token_id]).tolist()
        ends.append(self.tokenization.tokenizer.eos_token_id)
        return tuple({end for end in ends if end is not None})

    @functools.lru_cache  # noqa: B019  (as many as there are programs, and few objects)
    def _writer(self, max_new_tokens, temperature, top_k, top_p):
        model, policy = self.policy.language_model, self.policy

        @jax.jit
        def run(variables, base, latents, prompts, mask, row_ids, seed):
            if latents is None:
                decode = decoder(model, base)
            else:
                params = variables["params"]
                hyper = params["hyper"]
                axes = user_axes(hyper)
                modulate = jax.vmap(policy.hypernet.apply, (None, 0), axes)
                own = params["base"] if policy.train_base else base
                decode = user_decoder(model, own, modulate(hyper, latents), axes)
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
                row_ids=row_ids,
            )

        return run

    def log_probs(self, table: TokenTable, latents: np.ndarray | None) -> np.ndarray:
        """log pi(response | prompt, z) of each row in nats, `[B]`.

        Args:
          table: B rows.
          latents: `[B, D]`; None for the language model itself.
        """
        if latents is None:
            return self._score(table, self.base)[0]
        length = min(b for b in self._buckets(table) if b >= table.length.max())
        found, at_once = [], min(self.rows_at_once, len(table.start))
        for first in range(0, len(table.start), at_once):
            index = np.arange(first, first + at_once)
            index = np.where(index < len(table.start), index, 0)
            z = jnp.asarray(latents)[index]
            padded = table.pad(index, length)
            found.append(self._steered(self.variables, self.base, z, padded))
        return np.concatenate(jax.device_get(found))[: len(table.start)]

    @functools.cached_property
    def _steered(self):
        def row(variables, base, z, padded):
            one = jax.tree.map(lambda x: x[None], padded)
            conditioned = self.policy.condition(variables, base, z)
            return response_log_probs(self.policy.language_model, conditioned, one)[0]

        return jax.jit(jax.vmap(row, (None, None, 0, 0)))

    def export(self, z: np.ndarray, folder: str | pathlib.Path) -> None:
        """Folds one person's policy into a plain Hugging Face folder.

        Args:
          z: `[D]`.
          folder: to make; must not exist.

        Raises:
          InputError: if it exists.
        """
        conditioned = self.policy.condition(self.variables, self.base, jnp.asarray(z))
        hf.save(folder, read_config(self.folder), fold(conditioned), source=self.folder)
        note = {"trained_from": self.folder, "latent": np.asarray(z).tolist()}
        (pathlib.Path(folder) / "fsa.json").write_text(json.dumps(note) + "\n")
