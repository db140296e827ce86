"""Votes of a Polis consultation (pol.is), as ratings and as choices.

Choices are derived from votes, agree against disagree, in two ways: `random_choices`
and `contested_choices`. All draws come from generators keyed by (seed, conversation,
participant), so a table does not depend on other tables.
`fsa.data.sources.polis_files` reads the votes.

Shapes: P participants, S statements.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from fsa import episodes
from fsa.data import splits
from fsa.data.tables import Choice, Rating

AGREE, PASS, DISAGREE, UNSEEN = 1, 0, -1, 9

MAX_PAIRS = 40
MIN_RANDOM_PAIRS = 20
MIN_CONTESTED_PAIRS = 15
MAX_GAP = 0.5
NOISE = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Conversation:
    """The votes of one consultation.

    Attributes:
      name: part of the ids of users and statements.
      prompt: the question that the statements answer, "" if unknown.
      statements: `[S]` int, numbers of the statements.
      texts: S texts.
      participants: `[P]` int, numbers of the participants.
      votes: `[P, S]` int8; agree, pass, disagree or not seen.
      split: `[P]` int8, positions in `splits.SPLITS`.
    """

    name: str
    prompt: str
    statements: np.ndarray
    texts: tuple[str, ...]
    participants: np.ndarray
    votes: np.ndarray
    split: np.ndarray

    def user(self, p: int) -> str:
        """Returns the name of the participant in row `p`."""
        return f"{self.name}/{self.participants[p]}"

    def statement(self, s: int) -> str:
        """Returns the id of the statement in column `s`."""
        return f"{self.name}/{self.statements[s]}"

    def rng(self, seed: int, *key: int) -> np.random.Generator:
        """Makes a random generator for a key of this conversation."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return np.random.default_rng([seed, int.from_bytes(digest[:4]), *key])


def ratings(conversation: Conversation) -> Iterator[Rating]:
    """Yields every vote as a rating: 1 agree, 0 pass, -1 disagree."""
    for p, votes in enumerate(conversation.votes):
        for s in np.flatnonzero(votes != UNSEEN):
            yield Rating(
                user=conversation.user(p),
                prompt=conversation.prompt,
                item=conversation.texts[s],
                value=float(votes[s]),
                split=splits.SPLITS[conversation.split[p]],
                group=conversation.name,
                item_id=conversation.statement(s),
            )


def random_choices(conversation: Conversation, seed: int) -> Iterator[Choice]:
    """Pairs the statements that each participant agreed and disagreed with at random.

    No statement occurs twice for a participant. Participants with fewer than
    `MIN_RANDOM_PAIRS` pairs are left out, the others keep at most `MAX_PAIRS`.
    """
    for p, votes in enumerate(conversation.votes):
        rng = conversation.rng(seed, int(conversation.participants[p]))
        agreed, disagreed = (
            rng.permutation(np.flatnonzero(votes == vote)) for vote in (AGREE, DISAGREE)
        )
        pairs = list(zip(agreed, disagreed, strict=False))
        if len(pairs) >= MIN_RANDOM_PAIRS:
            yield from _choices(conversation, p, pairs[:MAX_PAIRS])


def contested_choices(conversation: Conversation, seed: int) -> Iterator[Choice]:
    """Pairs statements of about equal popularity.

    The statements that a participant took sides on are sorted by popularity with a
    little noise and paired with their neighbour without looking at the votes. Pairs
    further apart than `MAX_GAP` are dropped; of the rest, those where the votes differ
    are the choices. No statement occurs twice for a participant. Participants with
    fewer than `MIN_CONTESTED_PAIRS` pairs are left out, the others keep at most
    `MAX_PAIRS`.
    """
    popular = popularity(conversation)
    for p, votes in enumerate(conversation.votes):
        rng = conversation.rng(seed, int(conversation.participants[p]), 1)
        voted = np.flatnonzero((votes == AGREE) | (votes == DISAGREE))
        noisy = popular[voted] + rng.normal(0.0, NOISE, len(voted))
        offset = int(rng.random() < 0.5)
        agreed, disagreed, valid = episodes.pair_neighbours(
            voted[np.argsort(noisy)], offset, votes, popular, max_gap=MAX_GAP
        )
        pairs = np.stack([agreed, disagreed], axis=1)[valid]
        if len(pairs) >= MIN_CONTESTED_PAIRS:
            kept = pairs[rng.permutation(len(pairs))[:MAX_PAIRS]]
            yield from _choices(conversation, p, kept)


TABLES = {"contested": contested_choices, "random": random_choices}


def popularity(conversation: Conversation) -> np.ndarray:
    """Computes log((agree + 1) / (disagree + 1)) of training participants, `[S]`."""
    votes = conversation.votes[conversation.split == splits.SPLITS.index("train")]
    agree, disagree = ((votes == vote).sum(axis=0) for vote in (AGREE, DISAGREE))
    return np.log((agree + 1) / (disagree + 1))


def _choices(
    conversation: Conversation, p: int, pairs: Iterable[tuple[int, int]]
) -> Iterator[Choice]:
    for chosen, rejected in pairs:
        yield Choice(
            user=conversation.user(p),
            prompt=conversation.prompt,
            chosen=conversation.texts[chosen],
            rejected=conversation.texts[rejected],
            split=splits.SPLITS[conversation.split[p]],
            group=conversation.name,
            chosen_id=conversation.statement(chosen),
            rejected_id=conversation.statement(rejected),
        )
