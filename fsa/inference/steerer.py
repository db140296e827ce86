"""`Steerer`: a trained policy that writes text for a person, given choices.

```python
import fsa

steerer = fsa.Steerer.load("runs/demo-policy")
z = steerer.latent([(prompt, chosen, rejected), ...])  # [] without any choice
print(steerer.write([prompt], z[None]))
steerer.export(z, "models/mine")  # a plain Hugging Face folder
```

Shapes: N context choices, U users, D latent dimensions, B texts, K candidate responses
of a user, F features.
"""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from fsa.conditioning import (
    adapters,
    condition,
    fold,
    is_conditioned,
    user_axes,
)
from fsa.conditioning.adapters import Lora
from fsa.episodes import Choices, Options
from fsa.errors import InputError
from fsa.inference import saved_model
from fsa.inference.person import Person
from fsa.language import huggingface
from fsa.language.generation import Decoder, user_decoder
from fsa.language.huggingface import peft, weights
from fsa.language.huggingface.architecture import (
    arguments,
    read_config,
    with_bias_fields,
)
from fsa.language.language_model import LanguageModel, Written, buckets_for
from fsa.language.poolings import num_features
from fsa.language.scoring import in_batches
from fsa.language.token_table import EQUAL, TokenTable
from fsa.language.transformer import with_biases
from fsa.models.policy import (
    GROUP,
    INFERRED,
    NONE,
    SHARDING_RULES,
    Policy,
    response_log_probs,
    shifted,
    spec_of,
)
from fsa.parallel import processes
from fsa.parallel.examples import over_examples
from fsa.parallel.sharding import (
    fetch,
    on_mesh,
    shardings,
    vmap_examples,
    with_shardings,
)
from fsa.sizes import FEW_CHOICES, padded

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Steerer:
    """A policy with the language model that it steers.

    Attributes:
      policy: the policy.
      variables: the policy's own variables.
      language: the language model as it was before training, with zero biases where
        the policy shifts them.
      pooling: what the features of options are made of, one of `poolings.POOLINGS`.
      buckets: the padded lengths of sequences, ascending.
      groups: names of the users' groups.
      origin: what names the training that z belongs to: the SHA-256 of the
        `checkpoint`, its `step`, and the digests of `language_model` and `choices`;
        empty if the policy is not from a checkpoint.
    """

    policy: Policy
    variables: Any = dataclasses.field(repr=False)
    language: LanguageModel = dataclasses.field(repr=False)
    pooling: str
    buckets: tuple[int, ...]
    groups: tuple[str, ...] = ()
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    @saved_model.look_again
    def load(
        cls,
        workdir: epath.PathLike,
        *,
        data: epath.PathLike | None = None,
        model: epath.PathLike | None = None,
        any_data: bool = False,
        examples_at_once: int = 64,
        mesh: Mesh | None = None,
    ) -> "Steerer":
        """Loads the best checkpoint of a run of a policy, and its language model.

        Args:
          workdir: the run directory.
          data: the folder of the dataset that the run was trained on, if it has moved.
          model: the folder of its language model, if it has moved.
          any_data: do not look at the dataset.
          examples_at_once: see `LanguageModel`.
          mesh: see `LanguageModel`; no device then holds more than its parts.

        Raises:
          InputError: if the run has no sound checkpoint or is of another kind, if its
            language model is missing or has changed, or if its dataset was replaced by
            another one.
        """
        with saved_model.open_best(workdir, saved_model.POLICY) as (
            description,
            restore,
        ):
            if not any_data:
                saved_model.checked_data(workdir, description, data)
            settings = description["config"]["language_model"]
            folder = os.fspath(model or settings["path"])
            if not pathlib.Path(folder).is_dir():
                raise InputError(
                    f"{folder}: the language model of {workdir} is missing; put it "
                    "back, or say with `model` where it is"
                )
            if not huggingface.has_digest(folder, settings["digest"]):
                raise InputError(
                    f"{folder}: not the language model that {workdir} was trained on, "
                    "whose digest is another; put that one back, or say with `model` "
                    "where it is"
                )
            language = LanguageModel.load(
                folder,
                dtype=settings["dtype"],
                examples_at_once=examples_at_once,
                mesh=mesh,
                **description["tokenization"],
            ).with_biases(shifted(description["policy"]["modulations"]))
            model, base = language.model, language.variables
            policy = saved_model.make_policy(description, model)
            width = num_features(description["pooling"], model.width)
            like = jax.eval_shape(
                lambda base: policy.init(jax.random.key(0), base, width), base
            )
            if mesh is not None:
                like = with_shardings(like, shardings(like, mesh, SHARDING_RULES))
            return cls(
                policy,
                restore(like),
                language,
                description["pooling"],
                tuple(description["buckets"]),
                tuple(description.get("groups", ())),
                description["origin"],
            )

    def latent(self, choices: Sequence[tuple[str, str, str]]) -> np.ndarray:
        """Infers z `[D]` of the person who made these choices.

        Args:
          choices: N of (prompt, chosen, rejected); only the `differing` ones count.
            Without any choice, z is that of the prior; a policy without a latent takes
            no choices.

        Raises:
          InputError: for a choice with an empty text or too long a prompt, and for a
            policy that does not infer z from choices.
        """
        return self.latents_of([choices])[0]

    def latents_of(
        self, people: Sequence[Sequence[tuple[str, str, str]]]
    ) -> np.ndarray:
        """Infers z `[U, D]` of several people at once, see `latent`.

        Args:
          people: the choices of each, at least one person.

        Raises:
          InputError: as `latent`.
        """
        if self.policy.latent == NONE and not any(people):
            return np.ones((len(people), 1), np.float32)
        if self.policy.latent == GROUP:
            raise InputError(
                "policy.latent is 'group', so z is not inferred from choices; name one "
                f"of the groups {', '.join(self.groups)}"
            )
        if self.policy.latent != INFERRED:
            raise InputError(
                f"policy.latent is {self.policy.latent!r}, so z is not inferred from "
                "choices; train a policy with policy.latent=inferred"
            )
        for i, choice in enumerate((each for own in people for each in own), 1):
            texts = choice if isinstance(choice, tuple | list) else ()
            if len(texts) != 3 or not all(isinstance(text, str) for text in texts):
                raise InputError(
                    f"`choices`, choice {i}: give a tuple of three texts (prompt, "
                    "chosen, rejected)"
                )
        people = [self.differing(own) for own in people]
        pairs = [pair for own in people for pair in _pairs(own)]
        found = self.features(self.language.pairs(pairs)) if pairs else None
        size = padded(max(map(len, people)), FEW_CHOICES)
        users = padded(len(people))
        width = num_features(self.pooling, self.language.model.width)
        features = np.zeros((2, users, size, width), np.float32)
        mask, begin = np.zeros((users, size), bool), 0
        for user, own in enumerate(people):
            if own:
                end = begin + 2 * len(own)
                part = found[begin:end]
                features[:, user, : len(own)] = part[::2], part[1::2]
                mask[user, : len(own)], begin = True, end
        item = np.full((users, size), -1, np.int32)
        context = Choices(*(Options(side, item) for side in features), mask)
        return self.latents(context, np.zeros(users, np.int32))[: len(people)]

    def person(self, choices: Sequence[tuple[str, str, str]]) -> Person:
        """Returns the person who made these choices, with z, to be stored.

        Raises:
          InputError: as `latent`.
        """
        return Person(
            choices=tuple(map(tuple, choices)),
            z=self.latent(choices),
            checkpoint=self.origin.get("checkpoint", ""),
        )

    def renew(self, person: Person) -> Person:
        """Returns a stored person with the z of this training.

        After another training the stored z means nothing: it is inferred again from the
        choices, which a message says.

        Raises:
          InputError: as `latent`.
        """
        own = self.origin.get("checkpoint")
        if own and (person.checkpoint, len(person.z)) == (own, self._latent_dim):
            return person
        _LOG.warning("the stored z is of another training: inferred again from choices")
        return self.person(person.choices)

    @property
    def _latent_dim(self) -> int:
        return self.policy.reward_model.latent_dim

    def differing(
        self, choices: Sequence[tuple[str, str, str]]
    ) -> list[tuple[str, str, str]]:
        """Returns the choices (prompt, chosen, rejected) that say something.

        Two responses that are the same tokens, after a template or a cut, are no
        choice; a warning counts those that are left out.

        Raises:
          InputError: for a choice with an empty text or too long a prompt.
        """
        kinds = self.language.pairs(_pairs(choices)).kinds
        found = [
            choice
            for choice, a, b in zip(choices, kinds[::2], kinds[1::2], strict=True)
            if a != b
        ]
        if count := len(choices) - len(found):
            _LOG.warning("left out %d choices: %s", count, EQUAL)
        return found

    def latent_of_group(self, group: str) -> np.ndarray:
        """Returns z `[D]` of all users of a labelled group.

        Raises:
          InputError: for an unknown group, and for a policy that was not trained with
            groups.
        """
        if self.policy.latent != GROUP:
            raise InputError(
                f"policy.latent is {self.policy.latent!r}, so groups have no z; "
                "give a person's choices"
            )
        if group not in self.groups:
            known = ", ".join(self.groups)
            raise InputError(f"`group`={group!r}: no such group; name one of {known}")
        return np.eye(len(self.groups), dtype=np.float32)[self.groups.index(group)]

    def latents(self, contexts: Choices, groups: np.ndarray) -> np.ndarray:
        """Returns z `[U, D]` of users with contexts `[U, N]` and groups `[U]`."""
        return self._latents(self.variables, (contexts, groups))

    @functools.cached_property
    def _latents(self):
        def run(variables, users):
            latent_of = functools.partial(
                self.policy.latent_of, self.policy.gathered(variables)
            )
            return vmap_examples(latent_of)(*users)

        return over_examples(run, self.language.mesh)

    def features(self, table: TokenTable) -> np.ndarray:
        """Returns the features of responses, `[B, F]`."""
        return self.language.embed(table, pooling=self.pooling, buckets=self.buckets)

    def rewards(self, features: np.ndarray, latents: np.ndarray) -> np.ndarray:
        """Returns rewards `[B, K]` of options `[B, K, F]` at z `[B, D]`, in nats."""
        return self._rewards(self.variables, (features, latents))

    @functools.cached_property
    def _rewards(self):
        def run(variables, examples):
            gathered = self.policy.gathered(variables)

            def example(features, z):
                options = Options(features, jnp.full(len(features), -1))
                return self.policy.reward(gathered, options, z)

            return vmap_examples(example)(*examples)

        return over_examples(run, self.language.mesh)

    def write(
        self, prompts: Sequence[str], latents: np.ndarray | None, **options: Any
    ) -> Written:
        """Writes a response to each prompt, each at a z of its own.

        Args:
          prompts: B texts, or messages as JSON.
          latents: `[B, D]`; None for the language model itself.
          **options: options of `LanguageModel.write`, such as `max_new_tokens`.

        Raises:
          InputError: if a prompt is empty or too long.
        """
        if isinstance(prompts, str):
            raise InputError("`prompts`: give a list of texts, not a text")
        if latents is None:
            return self.language.write(prompts, **options)
        if np.ndim(latents) != 2 or len(latents) != len(prompts):
            raise InputError(
                f"`latents`: shape {np.shape(latents)} for {len(prompts)} prompts; "
                "give one z for each"
            )
        return self.language.write(
            prompts,
            decoder_of=self.decoder,
            shared=self.variables["params"],
            per_example=latents,
            **options,
        )

    def decoder(self, base: Any, params: Any, latents: jax.Array) -> Decoder:
        """Makes a decoder in which every example has a z of its own.

        To be called in a compiled function, with its arguments.

        Args:
          base: the variables of the language model, `language.variables`.
          params: those of the policy, `variables["params"]`.
          latents: `[B, D]`.
        """
        hyper = self.policy.gathered_heads(params["hyper"])
        axes = user_axes(hyper)
        modulate = vmap_examples(
            functools.partial(self.policy.hypernet.apply, hyper), 0, axes
        )
        return user_decoder(
            self.language.model,
            params["base"] if self.policy.train_base else base,
            modulate(latents),
            axes,
        )

    def log_probs(self, table: TokenTable, latents: np.ndarray | None) -> np.ndarray:
        """Returns log pi(response | prompt, z) in nats, `[B]`.

        Args:
          table: tokens of B prompts with responses.
          latents: `[B, D]`; None for the language model itself.
        """
        if latents is None:
            return self.language.score(table, buckets=self.buckets)[0]
        latents, language = np.asarray(latents), self.language

        def run(items, tokens):
            examples = latents[items], tokens
            return self._steered(self.variables, language.variables, examples)

        found = in_batches(
            run,
            table,
            1,
            buckets=buckets_for(table, self.buckets),
            mesh=language.mesh,
        )
        return found[:, 0]

    @functools.cached_property
    def _steered(self):
        def run(variables, base, examples):
            gathered = self.policy.gathered(variables)

            def example(z, tokens):
                one = jax.tree.map(lambda x: x[None], tokens)
                conditioned = self.policy.condition(gathered, base, z)
                return response_log_probs(self.language.model, conditioned, one)

            return vmap_examples(example)(*examples)

        return over_examples(run, self.language.mesh)

    def export(self, z: np.ndarray, folder: str | pathlib.Path) -> None:
        """Writes the policy at one z as a plain Hugging Face folder.

        Its file `fsa.json` names the training that it comes from, and z. Weights are
        built a layer at a time, also if they are split over devices.

        Args:
          z: `[D]`.
          folder: the new folder; it must not exist.

        Raises:
          InputError: if the folder exists, or if z shifts a bias that the language
            model's architecture does not have.
        """
        source, language = self.language.folder, self.language
        config = with_bias_fields(
            read_config(source), language.model.biases, f"{source}/config.json"
        )
        params = self.variables["params"]
        conditioned = condition(
            params["base"] if self.policy.train_base else language.variables,
            self._modulations(params["hyper"], np.asarray(z)),
        )
        layers = jax.tree.map(_Layers, conditioned, is_leaf=is_conditioned)
        # One config field stands for several biases; those that z does not shift are 0.
        _, variables = with_biases(language.model, layers, arguments(config)["biases"])
        processes.all_succeed(
            lambda: huggingface.save(
                folder,
                config,
                variables,
                source=source,
                stop_tokens=language.stop_tokens,
                origin={**self.origin, "z": np.asarray(z).tolist()},
            )
        )

    @functools.cached_property
    def _modulations(self):
        def modulations(hyper, z):
            return self.policy.hypernet.apply(self.policy.gathered_heads(hyper), z)

        return jax.jit(on_mesh(modulations, self.language.mesh))

    def adapter(self, z: np.ndarray) -> dict[str, Lora]:
        """Returns the policy at one z as LoRA factors, by the path of the parameter.

        They are exact: the language model with them is the policy at z.

        Args:
          z: `[D]`; or `[U, D]`, for factors with an axis of users in front.

        Raises:
          InputError: if the policy at z is no LoRA of its language model.
        """
        self._refuse_trained_base()
        try:
            return fetch(
                self._adapter(self.variables["params"]["hyper"], np.asarray(z))
            )
        except ValueError as error:
            raise InputError(
                f"policy.modulations: {error}; use `export`, or `adapter_rank`"
            ) from error

    def nearest_adapter(
        self, z: np.ndarray, rank: int
    ) -> tuple[dict[str, Lora], dict[str, float]]:
        """Returns the LoRA factors that are nearest to the policy at one z.

        For modulations that are no LoRA, such as scales.

        Args:
          z: `[D]`.
          rank: R, of the adapter.

        Returns:
          Factors by the path of the parameter, and by path the error: the norm of what
          is left of the update, as a share of its norm.

        Raises:
          InputError: if the language model was itself trained, or z shifts biases.
        """
        self._refuse_trained_base()
        try:
            found, errors = fetch(
                self._nearest(
                    self.variables["params"]["hyper"],
                    self.language.variables,
                    np.asarray(z),
                    rank,
                )
            )
        except ValueError as error:
            raise InputError(f"policy.modulations: {error}; use `export`") from error
        return found, jax.tree.map(float, errors)

    def _refuse_trained_base(self) -> None:
        if self.policy.train_base:
            raise InputError(
                "policy.train_base is true: the language model was trained as a whole, "
                "so there is no adapter of the one that it started from; use `export`"
            )

    @functools.cached_property
    def _nearest(self):
        spec = spec_of(self.policy.modulations)

        @functools.partial(jax.jit, static_argnums=3)
        def nearest(hyper, base, z, rank):
            modulations = self.policy.hypernet.apply(hyper, z)
            return adapters.nearest(spec, base, modulations, rank)

        return nearest

    @functools.cached_property
    def _adapter(self):
        spec, base = spec_of(self.policy.modulations), self.language.variables
        shapes = jax.eval_shape(lambda base: base, base)

        def of(hyper, z):
            if z.ndim == 2:
                return jax.vmap(of, (None, 0))(hyper, z)
            modulations = self.policy.hypernet.apply(hyper, z)
            return adapters.to_lora(spec, shapes, modulations)

        return jax.jit(of)

    def save_adapter(
        self, z: np.ndarray, folder: str | pathlib.Path, rank: int | None = None
    ) -> float:
        """Writes the policy at one z as a LoRA adapter in the form of PEFT.

        Its file `fsa.json` names the training that it comes from, and z.

        Args:
          z: `[D]`.
          folder: the new folder; it must not exist.
          rank: of the nearest adapter, if the policy at z is none; None for the exact
            one.

        Returns:
          The largest error of a parameter, see `nearest_adapter`; 0 for the exact one.

        Raises:
          InputError: as `adapter` or `nearest_adapter`, and if the folder exists or
            cannot be written.
        """
        return self.save_adapters(np.asarray(z)[None], [folder], rank)

    def save_adapters(
        self,
        latents: np.ndarray,
        folders: Sequence[str | pathlib.Path],
        rank: int | None = None,
    ) -> float:
        """Writes the adapters of several people, see `save_adapter`.

        Args:
          latents: `[U, D]`.
          folders: the new folder of each.
          rank: see `save_adapter`.
        """
        largest = 0.0
        exact = self.adapter(latents) if rank is None else None
        for user, (z, folder) in enumerate(zip(latents, folders, strict=True)):
            if rank is None:
                found = jax.tree.map(lambda x, user=user: x[user], exact)
            else:
                found, errors = self.nearest_adapter(z, rank)
                largest = max(largest, *errors.values())
            save = functools.partial(
                peft.save,
                folder,
                found,
                self._parameters,
                base_model=os.fspath(self.language.folder),
                origin=self.origin_of_adapter(rank) | {"z": np.asarray(z).tolist()},
            )
            processes.on_first(save)
        return largest

    def origin_of_adapter(self, rank: int | None = None) -> dict[str, Any]:
        """Returns what the `fsa.json` of an adapter has besides z."""
        return {**self.origin} if rank is None else {**self.origin, "nearest": rank}

    @functools.cached_property
    def _parameters(self):
        return weights.parameters_of(self.language.model)


class _Layers:
    """A parameter of a model, conditioned or not, built a layer at a time.

    Attributes:
      shape: of the whole parameter.
      dtype: of the parameter.
    """

    def __init__(self, leaf: Any):
        """Takes an array or a `Conditioned` of one user, and builds nothing."""
        self.shape, self.dtype, self._leaf = leaf.shape, leaf.dtype, leaf

    def __getitem__(self, layer: int) -> np.ndarray:
        """Returns one entry of the first axis."""
        return fetch(_built_layer(self._leaf, layer))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns all of it, as of a parameter that has no layers."""
        return np.array(fetch(_built(self._leaf)), dtype)


@jax.jit
def _built_layer(leaf: Any, layer: jax.Array) -> jax.Array:
    return fold(leaf[layer])


@jax.jit
def _built(leaf: Any) -> jax.Array:
    return fold(leaf)


def _pairs(choices: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Returns the two (prompt, response) of each choice, one after the other."""
    return [(prompt, text) for prompt, *both in choices for text in both]
