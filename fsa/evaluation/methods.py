"""Methods of writing for a user after some choices: the policy and its baselines.

A method is called with B users, a prompt for each, and a number n of context choices.
It returns the texts and, if known, their log-probabilities under the distribution from
which they were drawn. Shapes: B texts, K candidates for each text, U users, N context
choices, D latent dimensions.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from fsa.conditioning import interpolate
from fsa.data.tasks.pairs import PairTask
from fsa.episodes import Choices, first_choices
from fsa.evaluation.predictions import Predictions
from fsa.inference.steerer import Steerer
from fsa.language.language_model import LanguageModel, Written
from fsa.language.token_table import TokenTable
from fsa.language.tokenization import Tokenization, as_prompt, messages_of


class Method(Protocol):
    """Writes for test users of a task."""

    def __call__(
        self, users: np.ndarray, prompts: Sequence[str], n: int, **options: Any
    ) -> tuple[Written, np.ndarray | None]:
        """Writes B texts, each for a user after n choices.

        Args:
          users: `[B]`, indices of test users of the task.
          prompts: B texts.
          n: context size.
          **options: options of `LanguageModel.write`.

        Returns:
          The texts, and their log-probabilities `[B]` or None.
        """


def contexts_after(task: PairTask, users: np.ndarray, n: int) -> tuple[Choices, Any]:
    """Returns the first n context choices `[U, N]` of test users, and their groups."""
    episode = task.test_batch("test", users, 0).episode
    return first_choices(episode.context, n), episode.group


def latents_after(
    steerer: Steerer, task: PairTask, users: np.ndarray, n: int
) -> np.ndarray:
    """Infers z `[B, D]` of test users `[B]` after n choices; encodes each user once."""
    distinct, index = np.unique(users, return_inverse=True)
    return steerer.latents(*contexts_after(task, distinct, n))[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Steered:
    """The policy, steered to the latent of each user.

    Attributes:
      steerer: the policy.
      task: the task that has the users.
    """

    steerer: Steerer
    task: PairTask

    def __call__(self, users, prompts, n, **options):
        """See `Method`."""
        latents = latents_after(self.steerer, self.task, users, n)
        written = self.steerer.write(prompts, latents, **options)
        return written, self.steerer.log_probs(written.table, latents)


@dataclasses.dataclass(frozen=True, eq=False)
class Between:
    """The policy, interpolated between each user and one of another group.

    It is called with a position t in place of n: at 0 it is steered to the user, at 1
    to the other one, both after all of their context choices.

    Attributes:
      steerer: the policy, with an inferred latent.
      task: the task that has the users, of two groups or more.
    """

    steerer: Steerer
    task: PairTask

    def __call__(self, users, prompts, t, **options):
        """See `Method`."""
        ends = [
            latents_after(self.steerer, self.task, who, self.task.test_context)
            for who in (users, self.partners(users))
        ]
        latents = np.asarray(interpolate(*ends, t))
        written = self.steerer.write(prompts, latents, **options)
        return written, self.steerer.log_probs(written.table, latents)

    def partners(self, users: np.ndarray) -> np.ndarray:
        """Returns for each test user `[U]` one at the same place in the next group."""
        every = self.task.users("test")
        group_of = self.task.data.users["test"].group
        groups = range(len(self.task.groups))
        members = [every[group_of[every] == group] for group in groups]
        found = []
        for user in users:
            group = group_of[user]
            others = members[(group + 1) % len(members)]
            place = np.searchsorted(members[group], user)
            found.append(others[place % len(others)])
        return np.array(found)


@dataclasses.dataclass(frozen=True, eq=False)
class Partway:
    """The policy, part of the way from nobody in particular to each user.

    It is called with a share t in place of n: at 0 it is steered to z without any
    choice, at 1 to that of the user after all of their context choices, beyond 1 to
    more of what they like.

    Attributes:
      steerer: the policy, with an inferred latent.
      task: the task that has the users.
    """

    steerer: Steerer
    task: PairTask

    def __call__(self, users, prompts, t, **options):
        """See `Method`."""
        ends = [
            latents_after(self.steerer, self.task, users, n)
            for n in (0, self.task.test_context)
        ]
        latents = np.asarray(interpolate(*ends, t))
        written = self.steerer.write(prompts, latents, **options)
        return written, self.steerer.log_probs(written.table, latents)


@dataclasses.dataclass(frozen=True, eq=False)
class Reranked:
    """The best by reward of K texts that the language model itself writes.

    Attributes:
      steerer: a policy, of which only the reward model is used; it must have been
        trained with a `reward_weight` above 0.
      task: the task that has the users.
      candidates: K.
    """

    steerer: Steerer
    task: PairTask
    candidates: int = 16

    def __call__(self, users, prompts, n, **options):
        """See `Method`."""
        latents = latents_after(self.steerer, self.task, users, n)
        repeated = [prompt for prompt in prompts for _ in range(self.candidates)]
        drawn = self.steerer.language.write(repeated, **options)
        features = self.steerer.features(drawn.table)
        features = features.reshape(len(prompts), self.candidates, -1)
        rewards = self.steerer.rewards(features, latents)
        best = rewards.argmax(axis=1) + self.candidates * np.arange(len(prompts))
        table = drawn.table
        chosen = TokenTable.of([(table[i], table.start[i]) for i in best])
        return Written([drawn.texts[i] for i in best], chosen), None


@dataclasses.dataclass(frozen=True, eq=False)
class InContext:
    """The language model with a user's chosen responses as examples in its prompt.

    Attributes:
      language: the language model.
      task: the task that has the users.
    """

    language: LanguageModel
    task: PairTask

    def __call__(self, users, prompts, n, **options):
        """See `Method`."""
        shown = [
            self._prompt(user, prompt, n)
            for user, prompt in zip(users, prompts, strict=True)
        ]
        long = self._with_room()
        written = long.write(shown, **options)
        log_probs = long.score(written.table)[0]
        table = written.table
        responses = [table[i][table.start[i] :] for i in range(len(prompts))]
        plain = zip(self.language.prompts(prompts), responses, strict=True)
        # As answers to the prompt alone, since the reference sees no examples.
        alone = TokenTable.of([([*p, *r], len(p)) for p, r in plain])
        return Written(written.texts, alone), log_probs

    def predict(self, num_context: Sequence[int]) -> Predictions:
        """Predicts test choices by how much the examples favour each response."""
        users = self.task.users("test")
        long, data = self._with_room(), self.task.data
        items = [self.task.test_items("test", user) for user in users]
        most = self.task.test_targets
        log_prob = np.zeros((len(users), 1, len(num_context), most), np.float32)
        mask = np.zeros((len(users), 1, most), bool)
        for u, (_, target) in enumerate(items):
            mask[u, 0, : len(target)] = True
        for c, n in enumerate(num_context):
            asked = [
                (user, i)
                for user, (_, target) in zip(users, items, strict=True)
                for i in target.ravel()
            ]
            pairs = [
                (self._prompt(user, self._prompt_of(i), n), data.texts[i])
                for user, i in asked
            ]
            reference = self.task.responses.log_prob[[i for _, i in asked]]
            scored = long.score(long.pairs(pairs), progress=True)[0]
            ratio = scored - reference
            margin = ratio[::2] - ratio[1::2]
            log_prob[:, 0, c][mask[:, 0]] = -np.logaddexp(0, -margin)
        return Predictions(
            log_prob=log_prob,
            # No context is reversed, and so no target counts for the flip test.
            flipped=log_prob,
            bayes=None,
            effective_samples=None,
            mask=mask,
            informative=np.zeros(log_prob.shape[:3], bool),
            target_differs=mask,
            latent_mean=None,
            latent_kl=None,
            group=data.users["test"].group[users],
        )

    def _with_room(self) -> LanguageModel:
        # With examples, prompts are longer than the policy's.
        longer = dataclasses.replace(self.language.tokenization, max_prompt=10**6)
        return dataclasses.replace(self.language, tokenization=longer)

    def _prompt_of(self, item: int) -> str:
        return self.task.data.prompts[self.task.data.item_prompt[item]]

    def _prompt(self, user: int, prompt: str, n: int) -> str:
        chosen = self.task.test_items("test", user)[0][:n, 0]
        examples = [(self._prompt_of(i), self.task.data.texts[i]) for i in chosen]
        return with_examples(self.language.tokenization, examples, prompt)


def with_examples(
    tokenization: Tokenization, examples: Sequence[tuple[str, str]], prompt: str
) -> str:
    """Puts (prompt, response) examples before a prompt: as chat turns, or as lines."""
    if not tokenization.has_template:
        lines = [f"{p}{tokenization.separator}{response}" for p, response in examples]
        return "\n".join([*lines, prompt])
    messages = []
    for before, response in examples:
        messages += messages_of(before) or [{"role": "user", "content": before}]
        messages.append({"role": "assistant", "content": response})
    messages += messages_of(prompt) or [{"role": "user", "content": prompt}]
    return as_prompt(messages)
