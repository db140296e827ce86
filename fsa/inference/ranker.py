"""`Ranker`: a trained reward model that ranks options for a person, given choices.

```python
import fsa

ranker = fsa.Ranker.load("runs/demo")
ranking = ranker.rank([[0.2], [0.7], [0.8]], chosen=[[0.9]], rejected=[[0.6]])
print(ranking)
```

Shapes: P people, N context choices (or other feedback), O options, F features, K
samples of z, D latent dimensions, H hidden width.
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from fsa import latent, losses
from fsa.data.embedding import Embedder
from fsa.episodes import Choices, Feedback, Options
from fsa.errors import InputError
from fsa.inference import questions, reward_intervals, saved_model
from fsa.inference.comparison import Comparison
from fsa.inference.feedback import Told, as_list, pad
from fsa.inference.option_lookup import BadOption, OptionLookup
from fsa.inference.questions import Question, Questions
from fsa.inference.ranking import Ranking
from fsa.latent import DiagonalGaussian, Posterior
from fsa.models import reward_models
from fsa.models.linear_reward import LinearRewardModel
from fsa.models.reward_models import AnyRewardModel
from fsa.sizes import FEW_CHOICES, padded

# About how many numbers an array of a ranking has at most: 16 MiB.
_ELEMENTS = 2**22


class Inferred(NamedTuple):
    """What is inferred of a person.

    Attributes:
      q: q(z | C) `[D]`, on the device.
      counts: how much of each kind the person told, see `Told`.
      arguments: names of the arguments that this was told by, for messages.
    """

    q: DiagonalGaussian | Posterior
    counts: Mapping[str, int]
    arguments: Sequence[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Ranker:
    """A reward model with its variables.

    An option is a vector of F features; the id or the text of an item of the dataset
    that the model was trained on; or any other text, if there is an embedder. A text
    can be a pair (prompt, text), and has to be where it answers several prompts.

    Attributes:
      model: the Flax module.
      variables: its Flax variables.
      deterministic: whether z is the posterior mean, as in a deterministic training.
      data_path: the dataset that the model was trained on; None for simulated users.
      embedder: what embedded that dataset: the folder of a sentence-transformers or
        language model, or a function from texts to vectors `[O, F]`. Another one is
        refused. Texts are embedded by the dataset's template.
      num_samples: K.
      workdir: the run directory, for messages; None if the model is not from a run.
      origin: what names the training, see `fsa.Steerer`; empty if the model is not from
        a checkpoint.
    """

    model: AnyRewardModel
    variables: Any = dataclasses.field(repr=False)
    deterministic: bool
    data_path: str | None = None
    embedder: Embedder | None = None
    num_samples: int = 256
    workdir: str | None = None
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    @saved_model.look_again
    def load(
        cls,
        workdir: epath.PathLike,
        *,
        embedder: Embedder | None = None,
        data: epath.PathLike | None = None,
        any_data: bool = False,
    ) -> "Ranker":
        """Loads the best checkpoint of a run of a reward model.

        Args:
          workdir: the run directory.
          embedder: see `Ranker`.
          data: the folder of the dataset that the run was trained on, if it has moved.
          any_data: do not look at the dataset, for options that are none of its items.

        Raises:
          InputError: if the run has no sound checkpoint, or is of another kind; or if
            its dataset was replaced by another one.
        """
        with saved_model.open_best(workdir, saved_model.REWARD_MODEL) as (
            description,
            restore,
        ):
            path = None
            if not any_data:
                _refuse_responses(workdir, description["config"])
                path = saved_model.checked_data(workdir, description, data)
            return cls(
                reward_models.make(description["model"]),
                restore(),
                description["deterministic"],
                path,
                embedder,
                workdir=os.fspath(workdir),
                origin=description["origin"],
            )

    @property
    def num_features(self) -> int:
        """Number of features of an option, F."""
        return self.variables["statistics"]["options"]["mean"].shape[0]

    def rank(
        self,
        options: Sequence[Any] | np.ndarray,
        *,
        chosen: Sequence[Any] | np.ndarray = (),
        rejected: Sequence[Any] | np.ndarray = (),
        tied: Sequence[tuple[Any, Any]] = (),
        liked: Sequence[Any] | np.ndarray = (),
        disliked: Sequence[Any] | np.ndarray = (),
        rated: Mapping[Any, float] | Sequence[tuple[Any, float]] = (),
        weights: Mapping[str, Sequence[float]] | None = None,
        prompt: str | Sequence[str] | None = None,
        within_prompts: bool = False,
        seed: int = 0,
    ) -> Ranking:
        """Ranks options for the person who made some choices.

        Each option is compared with each other one at each z, in parts, so that memory
        is proportional to the number of options.

        What else a person may tell depends on the model: ties need one that is linear
        in z (`model.reward=linear`); likes and dislikes one that was trained on votes
        or ratings (`model.context`); ratings one that was trained on them.

        Args:
          options: O options to rank, at least two.
          chosen: options that the person chose, if any.
          rejected: the options that the person rejected for them, in the same order.
          tied: pairs of options that are equally good to the person.
          liked: options that the person likes, compared with nothing.
          disliked: options that the person does not like.
          rated: the person's rating of each option, as the ratings of the dataset.
          weights: how often each of them counts, such as `{"liked": [1, 2]}`; by
            default once.
          prompt: what the options answer, where they are texts: one prompt for all, or
            one for each.
          within_prompts: whether to compare an option only with those that answer the
            same prompt, as people do; there must be at least two of each prompt.
          seed: seed of the samples of z, from 0 to 2^31 - 1.

        Raises:
          InputError: for numbers of options that do not fit, what the model was not
            trained for, an option that is neither F finite numbers nor a text whose
            features can be found, or that has none to be compared with (`BadOption`),
            an embedder that is not the dataset's, or features so large that the
            model's rewards are not finite.
        """
        options = _as_options(options)
        _check_seed(seed)
        told = Told.of(chosen, rejected, tied, liked, disliked, rated, weights)
        return self.rank_inferred(
            self._inferred(told),
            options,
            prompt=prompt,
            within_prompts=within_prompts,
            seed=seed,
        )

    def infer(self, **told: Any) -> Inferred:
        """Infers what `rank_inferred` begins with, once for several rankings.

        Args:
          **told: `chosen`, `rejected` and so on, see `rank`.

        Raises:
          InputError: see `rank`.
        """
        return self._inferred(Told.of(**told))

    def rank_inferred(
        self,
        inferred: Inferred,
        options: Sequence[Any] | np.ndarray,
        *,
        prompt: str | Sequence[str] | None = None,
        within_prompts: bool = False,
        seed: int = 0,
    ) -> Ranking:
        """Ranks options for a person whose z is inferred already.

        Args:
          inferred: see `infer`.
          options: see `rank`.
          prompt: see `rank`.
          within_prompts: see `rank`.
          seed: see `rank`.

        Raises:
          InputError: see `rank`.
        """
        options = _as_options(options)
        _check_seed(seed)
        named = _with_prompts(options, prompt)
        ranked = self._lookup("options", named)
        group = self._groups(named, within_prompts)
        _check_company(group)
        wins, reward = self._compare_all(inferred, ranked, group, seed)
        return Ranking(
            options=options,
            probability=wins.mean(axis=0),
            std=wins.std(axis=0),
            num_choices=inferred.counts["chosen"],
            counts=inferred.counts,
            **reward,
        )

    def check(self, **told: Any) -> None:
        """Raises InputError for what a person could not tell this model, see `rank`.

        Args:
          **told: `chosen`, `rejected` and so on, see `rank`.
        """
        self._context(Told.of(**told))

    def compare(
        self, first: Any, second: Any, *, prompt: str | None = None, **told: Any
    ) -> Comparison:
        """Compares two options for the person who told something.

        Args:
          first: an option.
          second: another one.
          prompt: what they answer, where they are texts.
          **told: `chosen`, `rejected` and so on, see `rank`.

        Raises:
          InputError: see `rank`; also if the model is not linear in z, so that nothing
            is known of how sure it is.
        """
        if not isinstance(self.model, LinearRewardModel):
            raise InputError(
                "`compare` needs a model whose posterior is Bayes': train one with "
                "model.reward=linear, as the preset bayes has it"
            )
        everything = Told.of(**told)
        context = self._context(everything)
        options = self._lookup("options", _with_prompts([first, second], prompt))
        log_prob, mean, ends = jax.device_get(
            reward_intervals.compare(self.model, self.variables, context, options)
        )
        if not np.isfinite([log_prob, mean, *ends]).all():
            raise _not_finite("options", *everything.arguments)
        return Comparison(
            first, second, float(np.exp(log_prob)), float(mean), tuple(map(float, ends))
        )

    def next_question(
        self,
        options: Sequence[Any] | np.ndarray,
        *,
        leave_out: Iterable[tuple[int, int]] = (),
        about: str = questions.Z,
        prompt: str | Sequence[str] | None = None,
        within_prompts: bool = False,
        seed: int = 0,
        **told: Any,
    ) -> Question | None:
        """Finds the two options between which the person's choice tells most.

        Args:
          options: see `rank`.
          leave_out: positions of two options that are not to be asked about.
          about: see `questions`.
          prompt: see `rank`.
          within_prompts: whether to ask only about options that answer the same prompt.
          seed: see `questions`.
          **told: `chosen`, `rejected` and so on, see `rank`. Pairs that the person has
            answered are not asked again.

        Returns:
          The question, or None if all pairs are answered or left out.

        Raises:
          InputError: see `questions`.
        """
        found = self.questions(
            options,
            about=about,
            prompt=prompt,
            within_prompts=within_prompts,
            seed=seed,
            **told,
        )
        return found.best(leave_out)

    def unanswered(
        self,
        options: Sequence[Any] | np.ndarray,
        *,
        prompt: str | Sequence[str] | None = None,
        within_prompts: bool = False,
        **told: Any,
    ) -> list[tuple[int, int]]:
        """Lists the pairs of different options that the person has not compared yet.

        Any model can; what an answer tells is what `questions` computes.

        Args:
          options: see `rank`.
          prompt: see `rank`.
          within_prompts: see `next_question`.
          **told: `chosen`, `rejected` and so on, see `rank`.

        Returns:
          Positions of two options, the smaller one first.

        Raises:
          InputError: see `rank`.
        """
        named = _with_prompts(_as_options(options), prompt)
        found = self._lookup("options", named)
        pairs = questions.pairs_within(self._groups(named, within_prompts))
        answered = questions.answered(pairs, found, self._context(Told.of(**told)))
        return [tuple(pair) for pair in pairs[~answered].tolist()]

    def questions(
        self,
        options: Sequence[Any] | np.ndarray,
        *,
        about: str = questions.Z,
        prompt: str | Sequence[str] | None = None,
        within_prompts: bool = False,
        seed: int = 0,
        **told: Any,
    ) -> Questions:
        """Computes what is expected of the questions about all pairs of options.

        Args:
          options: see `rank`.
          about: what the answers are wanted for: "z", all that is not known about the
            person; "best", which of the options is the best; or "order", the order of
            all. The latter two are computed from `num_samples` samples of z, too large
            by about G / 2K where samples agree on G different answers: they are for few
            options.
          prompt: see `rank`.
          within_prompts: see `next_question`.
          seed: see `rank`; about z, a model that is linear in z needs no samples.
          **told: `chosen`, `rejected` and so on, see `rank`.

        Raises:
          InputError: see `rank`; also for a model that has no z, or that takes its mean
            for certain, and where no two options answer the same prompt.
        """
        if not self.model.latent_dim or self.deterministic:
            why = "model.latent_dim is 0: this model has no z"
            if self.model.latent_dim:
                why = "objective.name is deterministic: this model takes z for certain"
            raise InputError(f"{why}, of which an answer could tell something")
        if about not in questions.ABOUT:
            known = ", ".join(questions.ABOUT)
            raise InputError(f"`about`={about}: give one of {known}")
        options = _with_prompts(_as_options(options), prompt)
        _check_seed(seed)
        everything = Told.of(**told)
        looked_up = self._lookup("options", options)
        pairs = questions.pairs_within(self._groups(options, within_prompts))
        if not len(pairs):
            raise InputError("`options`: no two answer the same prompt; give such two")
        context = self._context(everything)
        found = questions.expect(
            self.model,
            self.variables,
            _infer(self.model, self.variables, context),
            context,
            looked_up,
            pairs,
            about=about,
            num_samples=self.num_samples,
            seed=seed,
        )
        if not np.isfinite(found.gain).all():
            raise _not_finite("options", *everything.arguments)
        return found

    def features(self, options: Sequence[Any]) -> Options:
        """Looks up the features `[O, F]` and the items `[O]` of options, see `rank`.

        Raises:
          BadOption: if an option cannot be used.
        """
        return self._lookup("options", options)

    def posterior(self, **told: Any) -> DiagonalGaussian | Posterior:
        """Infers q(z | C) `[D]` of the person who made some choices.

        Args:
          **told: `chosen`, `rejected` and so on, see `rank`.

        Raises:
          InputError: see `rank`; also for a model without z.
        """
        self._check_z()
        inferred = self.infer(**told)
        return self._finite(inferred.q, inferred.arguments)

    def moments(self, inferred: Inferred) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and standard deviation `[D]` of z, as of `posterior`.

        Args:
          inferred: see `infer`.

        Raises:
          InputError: see `posterior`.
        """
        self._check_z()
        q, (mean, std) = jax.device_get((inferred.q, _moments(inferred.q)))
        self._finite(q, inferred.arguments)
        return mean, std

    def posteriors(
        self, people: Sequence[tuple[Sequence[Any], Sequence[Any]] | Mapping[str, Any]]
    ) -> DiagonalGaussian | Posterior:
        """Infers q(z | C) `[P, D]` of several people at once.

        Args:
          people: (chosen, rejected) of each person, or a dict of what the person told,
            by the arguments of `rank`.

        Raises:
          InputError: see `posterior`.
        """
        self._check_z()
        people = [_as_told(person) for person in as_list("people", people)]
        if not people:
            raise InputError("`people`: give (chosen, rejected) of at least one person")
        size = _padded_choices(max(map(len, people)))
        contexts = [self._context(person, size) for person in people]
        # The batch is padded with people without choices, so that few sizes compile.
        nobody = [self._context(Told.of(), size)]
        contexts += nobody * (padded(len(people)) - len(people))
        batch = jax.tree.map(lambda *x: np.stack(x), *contexts)
        found = jax.device_get(_encode(self.model, self.variables, batch))
        kept = jax.tree.map(lambda x: x[: len(people)], found)
        arguments = dict.fromkeys(x for person in people for x in person.arguments)
        return self._finite(kept, arguments)

    def _check_z(self) -> None:
        if not self.model.latent_dim:
            raise InputError("model.latent_dim is 0: this model has no z")

    @staticmethod
    def _finite(q: Any, arguments: Iterable[str]) -> Any:
        """Fetches posteriors; raises InputError if they are not finite."""
        q = jax.device_get(q)
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(q)):
            raise _not_finite(*arguments)
        return q

    def mean_rewards(self, context: Choices, options: Options) -> jax.Array:
        """Averages rewards `[O]` over z ~ q(z | context); the context may be padded."""

        def rewards(z):
            return self.model.apply(
                self.variables, options, z, method=self.model.reward
            )[0]

        q = _infer(self.model, self.variables, context)
        z = latent.mean_or_samples(
            q, jax.random.key(0), self.num_samples, deterministic=self.deterministic
        )
        return jax.vmap(rewards)(z).mean(axis=0)

    def _groups(self, options: list[Any], within_prompts: bool) -> np.ndarray:
        """Returns numbers `[O]` of options, the same where they may be compared."""
        if not within_prompts:
            return np.zeros(len(options), np.int32)
        number: dict[str | None, int] = {}
        prompts = self._lookup.prompts(options)
        return np.array([number.setdefault(p, len(number)) for p in prompts], np.int32)

    def _inferred(self, told: Told) -> Inferred:
        q = _infer(self.model, self.variables, self._context(told))
        return Inferred(q, told.counts, tuple(told.arguments))

    def _compare_all(
        self, inferred: Inferred, options: Options, group: np.ndarray, seed: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Compares each option with the others.

        Returns:
          Each option's mean probability to win, for each z, `[K, O]`; and the fields of
          a `Ranking` about rewards, if the model knows them.
        """
        count = len(options.features)
        found = _compare_all(
            self.model,
            self.variables,
            inferred.q,
            _padded(options),
            _padded_groups(group),
            np.int32(seed),
            num_samples=self.num_samples,
            deterministic=self.deterministic,
        )
        (wins, finite, finite_z), rewards = jax.device_get(found)
        if not finite_z:
            raise _not_finite(*inferred.arguments)
        if not finite[:count].all():
            number = int(np.argmin(finite[:count]))
            raise BadOption(
                "options",
                number,
                "its features are so large that the model's reward "
                "is not finite; give features as the model was trained on",
            )
        if rewards is None:
            return wins[:, :count], {}
        mean, ends = rewards
        return wins[:, :count], {
            "reward": mean[:count],
            "reward_interval": ends.T[:count],
        }

    def _context(self, told: Told, size: int | None = None) -> Choices | Feedback:
        """Returns what was told, padded to `size`."""
        told.check(self.model)
        size = _padded_choices(len(told)) if size is None else size
        if isinstance(self.model, LinearRewardModel):
            return told.as_feedback(self._lookup, self.model.levels, size)
        sides = (
            jax.tree.map(functools.partial(pad, size=size), self._lookup(name, options))
            for name, options in (("chosen", told.chosen), ("rejected", told.rejected))
        )
        return Choices(*sides, np.arange(size) < len(told))

    @functools.cached_property
    def _lookup(self) -> OptionLookup:
        return OptionLookup(
            self.num_features, self.data_path, self.embedder, self.workdir
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the dataset and the embedding model, which are loaded again."""
        return {
            each.name: getattr(self, each.name) for each in dataclasses.fields(self)
        }


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: AnyRewardModel, variables: Any, contexts: Choices | Feedback):
    """Infers q(z | C) `[P, D]` of contexts `[P, N]`."""
    encode = functools.partial(model.apply, variables, method=model.encode)
    return jax.vmap(encode)(contexts)


@functools.partial(jax.jit, static_argnums=0)
def _infer(
    model: AnyRewardModel, variables: Any, context: Choices | Feedback
) -> DiagonalGaussian | Posterior:
    """Infers q(z | C) `[D]` of one context `[N]`."""
    return model.apply(variables, context, method=model.encode)


@jax.jit
def _moments(q: DiagonalGaussian | Posterior) -> tuple[jax.Array, jax.Array]:
    """Returns mean and standard deviation `[D]`; one program, see `_compare_all`."""
    return q.mean, jnp.exp(q.log_std) if isinstance(q, DiagonalGaussian) else q.std


@functools.partial(
    jax.jit, static_argnums=0, static_argnames=("num_samples", "deterministic")
)
def _compare_all(model, variables, q, options, group, seed, **static):
    """Computes `_wins` and, for a linear model, `reward_intervals.against_others`.

    They are one program, since starting one takes as long as running it.
    """
    wins = _wins(model, variables, q, options, group, seed, **static)
    if not isinstance(model, LinearRewardModel):
        return wins, None
    known = reward_intervals.against_others(model, variables, q, options, group)
    return wins, known


def _wins(
    model: AnyRewardModel,
    variables: Any,
    q: DiagonalGaussian | Posterior,
    options: Options,
    group: jax.Array,
    seed: jax.Array,
    *,
    num_samples: int,
    deterministic: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes each option's mean probability to win over the others.

    Args:
      model: any reward model.
      variables: its Flax variables.
      q: the posterior of z.
      options: O options, padded.
      group: `[O]`, see `fsa.inference.reward_intervals.against_others`.
      seed: seed of the samples of z.
      num_samples: K.
      deterministic: see `Ranker`.

    Returns:
      The probabilities `[K, O]`; whether an option's rewards are finite at every z,
      `[O]`; and whether all z are finite. Values at padding have no meaning.
    """
    size = len(options.features)
    key = jax.random.key(seed)
    z = latent.mean_or_samples(q, key, num_samples, deterministic=deterministic)
    position = jnp.arange(size)
    block = min(size, max(1, _ELEMENTS // size))

    def win_rates(mean, std):
        def against(each):
            """Mean probability `[]` of one option to win over the real others."""
            i, group_i, mean_i, std_i = each
            if std is None:
                # As exp(btl_log_prob), in an eighth of the time.
                p = jax.nn.sigmoid(mean_i - mean)
            else:
                p = jnp.exp(losses.dpl_log_prob(mean_i, std_i, mean, std))
            others = (position != i) & (group == group_i)
            # Padding may be alone.
            return jnp.sum(p, where=others) / jnp.maximum(others.sum(), 1)

        options = position, group, mean, mean if std is None else std
        return jax.lax.map(against, options, batch_size=block)

    def at(z_k):
        mean, std = model.apply(variables, options, z_k, method=model.reward)
        finite = jnp.isfinite(mean if std is None else mean + std)
        return win_rates(mean, std), finite

    # Arrays of a value of z are [block, O], and [O, H] inside the model.
    at_once = max(1, _ELEMENTS // (size * max(block, model.hidden)))
    wins, finite = jax.lax.map(at, z, batch_size=min(at_once, len(z)))
    return wins, finite.all(axis=0), jnp.isfinite(z).all()


def _padded_choices(count: int) -> int:
    return padded(count, FEW_CHOICES)


def _padded_options(count: int) -> int:
    """Returns a power of two, and beyond 1,024 a multiple of it: work is O^2."""
    return padded(count, FEW_CHOICES) if count <= 1024 else -(-count // 1024) * 1024


def _padded(options: Options) -> Options:
    size = _padded_options(len(options.features))
    return jax.tree.map(functools.partial(pad, size=size), options)


def _padded_groups(group: np.ndarray) -> np.ndarray:
    """Fills groups `[O]` up as `_padded` does options, with a group of its own."""
    missing = _padded_options(len(group)) - len(group)
    return np.pad(group, (0, missing), constant_values=group.max() + 1)


def _check_company(group: np.ndarray) -> None:
    """Raises BadOption for an option that is alone in its group."""
    alone = np.bincount(group)[group] == 1
    if alone.any():
        raise BadOption(
            "options",
            int(np.argmax(alone)),
            "no other option answers the same prompt; leave it out, or give another",
        )


def _refuse_responses(workdir: epath.PathLike, config: Mapping[str, Any]) -> None:
    """Raises InputError for a run whose options only its language model can embed."""
    if config.get("task", {}).get("name") == saved_model.RESPONSES:
        raise InputError(
            f"{workdir}: a reward model of a language model's responses, which gives z "
            f"to a policy; train one with config.policy.reward_model={workdir}"
        )


def _as_options(options: Any) -> list[Any]:
    options = as_list("options", options)
    if len(options) < 2:
        raise InputError("`options`: give at least two")
    return options


def _check_seed(seed: Any) -> None:
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**31:
        raise InputError(f"`seed`={seed}: give a whole number from 0 to 2^31 - 1")


def _as_told(person: Any) -> Told:
    """Returns what one of several people told."""
    if isinstance(person, Mapping):
        if unknown := person.keys() - {
            field.name for field in dataclasses.fields(Told)
        }:
            raise InputError(f"`people`: {min(unknown)!r} is no argument of `rank`")
        return Told.of(**person)
    sides = as_list("people", person)
    if len(sides) != 2:
        raise InputError("`people`: give (chosen, rejected) of each, or a dict")
    return Told.of(*sides)


def _with_prompts(options: list[Any], prompt: str | Sequence[str] | None) -> list[Any]:
    """Returns options that are texts as pairs (prompt, text)."""
    if prompt is None:
        return options
    prompts = [prompt] * len(options) if isinstance(prompt, str) else None
    prompts = as_list("prompt", prompt) if prompts is None else prompts
    if len(prompts) != len(options):
        raise InputError(
            f"`prompt`: {len(prompts)} prompts for {len(options)} options; give one "
            "for all, or one for each"
        )
    return [
        (own, option) if isinstance(option, str) else option
        for own, option in zip(prompts, options, strict=True)
    ]


def _not_finite(*arguments: str) -> InputError:
    names = " and ".join(f"`{name}`" for name in arguments)
    return InputError(
        f"{names}: features so large that z is not finite; give features as the model "
        "was trained on"
    )
