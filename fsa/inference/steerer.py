"""A trained policy in use: a person's choices in, text as that person likes it out.

```python
from fsa.inference.steerer import Steerer

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
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from fsa.conditioning import fold, user_axes
from fsa.episodes import Choices, Options
from fsa.errors import InputError
from fsa.language import huggingface
from fsa.language.generation import Decoder, user_decoder
from fsa.language.huggingface.architecture import (
    arguments,
    read_config,
    with_bias_fields,
)
from fsa.language.language_model import LanguageModel, Written, buckets_for
from fsa.language.token_table import TokenTable
from fsa.language.transformer import with_biases
from fsa.models.policy import (
    GROUP,
    INFERRED,
    NONE,
    Policy,
    response_log_probs,
    shifted,
)
from fsa.models.reward import RewardModel
from fsa.training.checkpoint import VARIABLES, Checkpoints


@dataclasses.dataclass(frozen=True, eq=False)
class Steerer:
    """A policy with all that it takes to use it.

    Attributes:
      policy: the policy.
      variables: its own.
      language: the model that it steers, as it was, but for biases at zero where
        the policy shifts them.
      pooling: of option embeddings, see `score_responses`.
      buckets: lengths that sequences are padded to, ascending.
      groups: names of the users' groups.
    """

    policy: Policy
    variables: Any
    language: LanguageModel
    pooling: str
    buckets: tuple[int, ...]
    groups: tuple[str, ...] = ()

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
            raise InputError(f"{workdir}: not a run of a policy; name one that is")
        settings = meta["language_model"]
        digest = huggingface.digest(settings["path"])
        if digest != settings["digest"]:
            raise InputError(
                f"{settings['path']}: another language model by now than the one that "
                f"{workdir} was trained on; put that one back"
            )
        language = LanguageModel.load(
            settings["path"], dtype=settings["dtype"], **meta["tokenization"]
        )
        options = dict(meta["policy"])
        options["modulations"] = tuple(map(tuple, options["modulations"]))
        options["trunk"] = tuple(options["trunk"])
        model, base = with_biases(
            language.model, language.variables, shifted(options["modulations"])
        )
        language = dataclasses.replace(language, model=model, variables=base)
        policy = Policy(model, RewardModel(**meta["model"]), **options)
        like = jax.eval_shape(lambda: policy.init(jax.random.key(0), base, model.width))
        variables = checkpoints.restore(step, {VARIABLES: like})[VARIABLES]
        checkpoints.close()
        return cls(
            policy,
            variables,
            language,
            meta["pooling"],
            tuple(meta["buckets"]),
            tuple(meta.get("groups", ())),
        )

    def latent(self, choices: Sequence[tuple[str, str, str]]) -> np.ndarray:
        """z of the person who made these choices.

        Args:
          choices: N of (prompt, chosen, rejected); none for what most people prefer,
            which is all that a policy without a latent has.

        Returns:
          `[D]`.

        Raises:
          InputError: for a choice with an empty text or too long a prompt, for a policy
            of labelled groups, and for choices where the policy is that of everybody.
        """
        if self.policy.latent == NONE and not choices:
            return np.ones(1, np.float32)
        if self.policy.latent == GROUP:
            raise InputError(
                "policy.latent is 'group', which infers nothing from choices; name one "
                f"of the groups {', '.join(self.groups)}"
            )
        if self.policy.latent != INFERRED:
            raise InputError(
                f"policy.latent is {self.policy.latent!r}, which infers nothing from "
                "choices; train one with policy.latent=inferred"
            )
        pairs = [(prompt, text) for prompt, *both in choices for text in both]
        features = np.zeros((0, self.language.model.width), np.float32)
        if pairs:
            features = self.features(self.language.pairs(pairs))
        context = Choices(
            *(
                Options(side, np.full(len(side), -1, np.int32))
                for side in (features[::2], features[1::2])
            ),
            np.ones(len(choices), bool),
        )
        return np.asarray(self.policy.encode(self.variables, context).mean)

    def latent_of_group(self, name: str) -> np.ndarray:
        """z of all users of a labelled group, `[D]`.

        Raises:
          InputError: for a group that there is not, and where the policy was not told
            of groups.
        """
        if self.policy.latent != GROUP:
            raise InputError(
                f"policy.latent is {self.policy.latent!r}, which knows no groups; give "
                "a person's choices"
            )
        if name not in self.groups:
            known = ", ".join(self.groups)
            raise InputError(f"group {name!r} is none of {known}; name one of them")
        return np.eye(len(self.groups), dtype=np.float32)[self.groups.index(name)]

    def latents(self, contexts: Choices, groups: np.ndarray) -> np.ndarray:
        """z of several users, `[U, D]`, from contexts `[U, N]` and groups `[U]`."""
        return np.asarray(self._latents(self.variables, contexts, groups))

    @functools.cached_property
    def _latents(self):
        return jax.jit(jax.vmap(self.policy.latent_of, (None, 0, 0)))

    def features(self, table: TokenTable) -> np.ndarray:
        """Embeddings of responses, `[B, F]`."""
        return self.language.score(table, pooling=self.pooling, buckets=self.buckets)[1]

    def rewards(self, features: np.ndarray, latents: np.ndarray) -> np.ndarray:
        """Rewards of options `[B, K, F]` for people `[B, D]`, `[B, K]` in nats."""
        return np.asarray(self._rewards(self.variables, features, latents))

    @functools.cached_property
    def _rewards(self):
        def example(variables, features, z):
            return self.policy.reward_model.apply(
                self.policy.reward_variables(variables),
                Options(features, jnp.full(len(features), -1)),
                z,
                method=RewardModel.reward,
            )[0]

        return jax.jit(jax.vmap(example, (None, 0, 0)))

    def write(
        self, prompts: Sequence[str], latents: np.ndarray | None, **options: Any
    ) -> Written:
        """Answers prompts, each for a person of its own.

        Args:
          prompts: B texts, or messages as JSON.
          latents: `[B, D]`; None for the language model itself.
          **options: `max_new_tokens` and others of `LanguageModel.write`.

        Raises:
          InputError: for a prompt that is empty or too long, naming it.
        """
        if latents is None:
            return self.language.write(prompts, **options)
        return self.language.write(
            prompts,
            decoder_of=self._decoder,
            shared=self.variables["params"],
            examples=latents,
            **options,
        )

    def _decoder(self, base, params, latents) -> Decoder:
        axes = user_axes(params["hyper"])
        modulate = jax.vmap(self.policy.hypernet.apply, (None, 0), axes)
        return user_decoder(
            self.language.model,
            params["base"] if self.policy.train_base else base,
            modulate(params["hyper"], latents),
            axes,
        )

    def log_probs(self, table: TokenTable, latents: np.ndarray | None) -> np.ndarray:
        """log pi(response | prompt, z) of each row in nats, `[B]`.

        Args:
          table: B rows.
          latents: `[B, D]`; None for the language model itself.
        """
        if latents is None:
            return self.language.score(table, buckets=self.buckets)[0]
        fitting = buckets_for(table, self.buckets)
        length = min(length for length in fitting if length >= table.length.max())
        found = []
        for index, real in self.language.parts(len(table.start)):
            z, padded = jnp.asarray(latents)[index], table.pad(index, length)
            examples = self._steered(self.variables, self.language.variables, z, padded)
            found.append(jax.device_get(examples)[:real])
        return np.concatenate(found)

    @functools.cached_property
    def _steered(self):
        def example(variables, base, z, padded):
            one = jax.tree.map(lambda x: x[None], padded)
            conditioned = self.policy.condition(variables, base, z)
            return response_log_probs(self.language.model, conditioned, one)[0]

        return jax.jit(jax.vmap(example, (None, None, 0, 0)))

    def export(self, z: np.ndarray, folder: str | pathlib.Path) -> None:
        """Folds one person's policy into a plain Hugging Face folder.

        Args:
          z: `[D]`.
          folder: to make; must not exist.

        Raises:
          InputError: if it exists, or where z shifts a bias that no config of the
            model's architecture has.
        """
        source, language = self.language.folder, self.language
        config = with_bias_fields(
            read_config(source), language.model.biases, f"{source}/config.json"
        )
        conditioned = self.policy.condition(
            self.variables, language.variables, jnp.asarray(z)
        )
        # One field of a config is for several biases: those that z leaves are zero.
        _, variables = with_biases(
            language.model, fold(conditioned), arguments(config)["biases"]
        )
        huggingface.save(folder, config, variables, source=source)
