"""`PersonModel`: what a trained run makes of what one person told.

A run is of a reward model or of a policy. Answers are rows as in a table of
`fsa predict --context`, see `fsa.data.columns.read_told`:

    {"prompt": "Tea?", "chosen": "green", "rejected": "black"}
    {"prompt": "Tea?", "chosen": "green", "rejected": "black", "tie": true}
    {"liked": "green"}   {"disliked": "black"}   {"item": "green", "value": 4}

Shapes: N answers, O options, D latent dimensions.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from fsa.data import columns, files
from fsa.data.embedding import Embedder
from fsa.episodes import Options
from fsa.errors import InputError
from fsa.inference import saved_model
from fsa.inference.questions import Question, Questions
from fsa.inference.ranker import Inferred, Ranker
from fsa.inference.ranking import Ranking
from fsa.inference.steerer import Steerer
from fsa.latent import DiagonalGaussian, Posterior
from fsa.models.policy import INFERRED
from fsa.sizes import FEW_CHOICES, padded

# Embeddings of texts that a policy keeps: 4 KB each at a width of 1,024.
_KEPT = 16384
# People of whom q is kept: some kilobytes each.
_RECENT = 2048
# Answers, and options, of which a ranking takes about a millisecond.
_FEW = 32

Answer = files.Row


class Latent(NamedTuple):
    """What is believed of z.

    Attributes:
      mean: `[D]` float32, at which a policy writes.
      std: `[D]` float32, how uncertain each dimension is.
    """

    mean: np.ndarray
    std: np.ndarray


def canonical(answer: Answer) -> str:
    """Returns an answer as JSON, the same text for the same answer."""
    return json.dumps(answer, sort_keys=True, ensure_ascii=False)


@dataclasses.dataclass(frozen=True, eq=False)
class PersonModel:
    """A run in use for people, each of whom is a list of answers.

    All results depend on which answers there are, and not on their order: the same
    answers give the same bits.

    Attributes:
      ranker: ranks for a person; of a policy, by the reward model inside it.
      steerer: the policy, which writes; None for a reward model.
    """

    ranker: Ranker
    steerer: Steerer | None = None
    # Held while `_recent` is changed.
    _keeping: Any = dataclasses.field(
        default_factory=threading.Lock, init=False, repr=False
    )
    # Sizes of answers and options that a ranking was compiled for.
    _ranked: set[tuple[int, int]] = dataclasses.field(
        default_factory=set, init=False, repr=False
    )

    @classmethod
    def load(
        cls,
        workdir: epath.PathLike,
        *,
        embedder: Embedder | None = None,
        data: epath.PathLike | None = None,
        model: epath.PathLike | None = None,
    ) -> "PersonModel":
        """Loads the best checkpoint of a run of a reward model or of a policy.

        Args:
          workdir: the run directory.
          embedder: see `Ranker`; a policy embeds texts by itself.
          data: see `Ranker.load`.
          model: see `Steerer.load`.

        Raises:
          InputError: as `Ranker.load` and `Steerer.load`; also for a policy that does
            not infer z from choices.
        """
        description = saved_model.describe_best(workdir)
        if description["kind"] != saved_model.POLICY:
            return cls(Ranker.load(workdir, embedder=embedder, data=data))
        steerer = Steerer.load(workdir, data=data, model=model)
        name = description["config"].get("objective", {}).get("name")
        return cls.of_policy(steerer, deterministic=name == "deterministic")

    @classmethod
    def of_policy(cls, steerer: Steerer, *, deterministic: bool) -> "PersonModel":
        """Makes the model of people of a policy.

        Args:
          steerer: the policy, with latent `inferred`.
          deterministic: whether it was trained with the mean of z alone.

        Raises:
          InputError: for a policy that does not infer z from choices.
        """
        if steerer.policy.latent != INFERRED:
            raise InputError(
                f"policy.latent is {steerer.policy.latent!r}, so nothing is inferred "
                "of a person; train a policy with policy.latent=inferred"
            )
        ranker = Ranker(
            steerer.policy.reward_model,
            steerer.policy.reward_variables(steerer.variables),
            deterministic,
            origin=steerer.origin,
        )
        return cls(ranker, steerer)

    @property
    def checkpoint(self) -> str:
        """SHA-256 of the checkpoint, to which every z belongs; "" if not known."""
        return self.ranker.origin.get("checkpoint", "")

    def told(self, answers: Iterable[Answer]) -> dict[str, list[Any]]:
        """Returns what a person told, as arguments of `Ranker.rank`.

        Args:
          answers: N answers, in any order.

        Raises:
          InputError: naming an answer that cannot be used.
        """
        found: dict[str, list[Any]] = {}
        for number, answer in enumerate(sorted(answers, key=canonical), 1):
            for name, value in columns.told_of(answer, f"answer {number}").items():
                found.setdefault(name, []).append(self._known(name, value))
        return found

    def check(self, answer: Answer) -> None:
        """Raises InputError for an answer that the model cannot use."""
        told = columns.told_of(answer, "answer")
        self.ranker.check(**{name: [value] for name, value in self._as(told).items()})
        if "chosen" in told and told["chosen"] == told["rejected"]:
            raise InputError(
                "answer: chosen and rejected are the same; give two options"
            )
        if self.steerer and not self.steerer.differing(_choices(told)):
            raise InputError(
                "answer: chosen and rejected are the same tokens to the policy; give "
                "two responses that differ"
            )

    def rank(
        self, answers: Iterable[Answer], options: Sequence[Any], *, seed: int = 0
    ) -> Ranking:
        """Ranks O options for a person.

        Args:
          answers: what the person told.
          options: see `Ranker`; for a policy pairs (prompt, text).
          seed: see `Ranker.rank`.

        Raises:
          InputError: see `Ranker.rank`.
        """
        known, answers = self._options(options), list(answers)
        ranking = self.ranker.rank_inferred(self._inferred(answers), known, seed=seed)
        self._ranked.add(_sizes(answers, options))
        return dataclasses.replace(ranking, options=list(options))

    def ranks_at_once(self, answers: Sequence[Answer], options: Sequence[Any]) -> bool:
        """Whether `rank` takes about a millisecond, and may run beside anything else.

        That is so if answers and options are a few vectors, of which nothing is looked
        up or embedded, and a ranking of so many has run, so that it is compiled.

        Args:
          answers: see `rank`.
          options: see `rank`.
        """
        if self.steerer or self.ranker.embedder is not None:
            return False
        if max(len(answers), len(options)) > _FEW:
            return False
        told = itertools.chain.from_iterable(answer.values() for answer in answers)
        # Texts and numbers may be those of items; of a rating the number is looked up.
        plain = (isinstance(value, list | bool) for value in [*told, *options])
        return all(plain) and _sizes(answers, options) in self._ranked

    def question(
        self,
        answers: Iterable[Answer],
        options: Sequence[Any],
        leave_out: Iterable[tuple[int, int]] = (),
        random: bool = False,
        *,
        seed: int = 0,
    ) -> Question | None:
        """Finds two options to ask a person about, which answer the same prompt.

        Args:
          answers: what the person told; such pairs are not asked again.
          options: see `rank`.
          leave_out: positions of two options that are not to be asked about.
          random: whether to take any pair in place of that whose answer tells most.
          seed: seed of that draw, and of samples of z.

        Returns:
          The question, its gain NaN if it is a random one; None if none is left.

        Raises:
          InputError: see `Ranker.questions`; a random question needs no z.
        """
        pairs = list(itertools.combinations(range(len(options)), 2))
        apart = [(i, j) for i, j in pairs if _prompt(options[i]) != _prompt(options[j])]
        refused = {tuple(sorted(pair)) for pair in [*leave_out, *apart]}
        if not random:
            return self.questions(answers, options, seed=seed).best(refused)
        known, told = self._options(options), self.told(answers)
        answered = _answered(told)
        np.random.default_rng(seed).shuffle(pairs)
        for i, j in pairs:
            options_of = frozenset((_key(known[i]), _key(known[j])))
            new = (i, j) not in refused and options_of not in answered
            if new and len(options_of) == 2:
                return Question(i, j, float("nan"))
        return None

    def questions(
        self, answers: Iterable[Answer], options: Sequence[Any], *, seed: int = 0
    ) -> Questions:
        """Computes what is expected of all questions, see `Ranker.questions`."""
        known = self._options(options)
        return self.ranker.questions(known, seed=seed, **self.told(answers))

    def features(self, options: Sequence[Any]) -> Options:
        """Looks up the features `[O, F]` of options, see `rank`."""
        return self.ranker.features(self._options(options))

    def posterior(self, answers: Iterable[Answer]) -> DiagonalGaussian | Posterior:
        """Infers q(z | answers) `[D]`, see `Ranker.posterior`."""
        return self.ranker.posterior(**self.told(answers))

    def _inferred(self, answers: Iterable[Answer]) -> Inferred:
        """Returns what is inferred of a person, which is kept for the next ranking."""
        answers = list(answers)
        text = "\n".join(sorted(map(canonical, answers)))
        key = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
        with self._keeping:
            found = self._recent.pop(key, None)
        if found is None:
            found = self.ranker.infer(**self.told(answers))
        with self._keeping:
            self._recent[key] = found
            if len(self._recent) > _RECENT:
                del self._recent[next(iter(self._recent))]
        return found

    @functools.cached_property
    def _recent(self) -> dict[bytes, Inferred]:
        """Of people who were ranked for, the latest last, by their answers' digest."""
        return {}

    def latent(self, answers: Iterable[Answer]) -> Latent:
        """Infers mean and standard deviation of z.

        Raises:
          InputError: see `Ranker.posterior`.
        """
        moments = self.ranker.moments(self._inferred(answers))
        return Latent(*(np.asarray(x, np.float32) for x in moments))

    def warm_up(self) -> None:
        """Compiles what few answers and options run, so that nobody waits for it."""
        options = np.eye(2, self.ranker.num_features, dtype=np.float32)
        self.ranker.rank(options)
        if self.steerer is None:
            self._ranked.add(_sizes([], options))
        if self.ranker.model.latent_dim:
            self.latent([])
            if not self.ranker.deterministic:
                self.ranker.questions(options)

    def _options(self, options: Sequence[Any]) -> list[Any]:
        if self.steerer is None:
            return list(options)
        return [self._embed("options", option) for option in options]

    def _known(self, name: str, value: Any) -> Any:
        """Returns what `Ranker` takes for what was told; of a policy, embeddings."""
        if self.steerer is None:
            return value
        if name not in ("chosen", "rejected"):
            raise InputError(
                f"{name}: a policy takes choices; give chosen and rejected"
            )
        return self._embed(name, value)

    def _as(self, told: dict[str, Any]) -> dict[str, Any]:
        return {name: self._known(name, value) for name, value in told.items()}

    def _embed(self, name: str, option: Any) -> np.ndarray:
        pair = isinstance(option, tuple) and len(option) == 2
        if not pair or not all(isinstance(text, str) for text in option):
            raise InputError(f"{name}: a policy needs texts; give each with its prompt")
        return self._embedded(*option)

    @functools.cached_property
    def _embedded(self):
        language = self.steerer.language

        @functools.lru_cache(_KEPT)
        def embed(prompt: str, response: str) -> np.ndarray:
            # Alone, at a length of its own, so that its bits depend on nothing else.
            table = language.pairs([(prompt, response)])
            return language.embed(
                table,
                pooling=self.steerer.pooling,
                buckets=self.steerer.buckets,
                tokens_at_once=1,
            )[0]

        return embed


def _sizes(answers: Sequence[Answer], options: Sequence[Any]) -> tuple[int, int]:
    """Returns the sizes to which answers and options are padded."""
    return padded(len(answers), FEW_CHOICES), padded(len(options), FEW_CHOICES)


def _choices(told: dict[str, Any]) -> list[tuple[str, str, str]]:
    (prompt, chosen), (_, rejected) = told["chosen"], told["rejected"]
    return [(prompt, chosen, rejected)]


def _prompt(option: Any) -> str:
    return option[0] if isinstance(option, tuple) else ""


def _answered(told: dict[str, list[Any]]) -> set[frozenset]:
    """Returns the pairs of options that were compared."""
    pairs = zip(told.get("chosen", ()), told.get("rejected", ()), strict=True)
    return {frozenset(map(_key, pair)) for pair in [*pairs, *told.get("tied", ())]}


def _key(option: Any) -> Any:
    if isinstance(option, str | tuple):
        return option
    return tuple(np.ravel(jax.device_get(option)).tolist())
