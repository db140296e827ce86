"""Votes of a Polis consultation (pol.is), as judgements and as choices.

Choices are derived from votes, agree against disagree, in two ways: `random_choices`
and `contested_choices`. All draws come from generators keyed by (seed, conversation,
participant), so a table does not depend on what else is made. `fsa.data.sources.polis_files`
reads the votes.

Shapes: P participants, S statements.
"""

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np

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
      prompt: what the statements answer, "" where unknown.
      statements: `[S]` int, numbers.
      texts: S texts.
      participants: `[P]` int, numbers.
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
        """The name of the participant in row `p`."""
        return f"{self.name}/{self.participants[p]}"

    def statement(self, s: int) -> str:
        """The id of the statement in column `s`."""
        return f"{self.name}/{self.statements[s]}"

    def rng(self, seed: int, *key: int) -> np.random.Generator:
        """A generator of this conversation's own."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return np.random.default_rng([seed, int.from_bytes(digest[:4]), *key])


def ratings(conversation: Conversation) -> Iterator[Rating]:
    """Every vote: 1 agree, -1 disagree; a pass, 0, lies between them."""
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
    """Pairs each participant's agreed and disagreed statements at random.

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
    """Pairs statements that are about equally popular.

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
        # An even or odd start, so that the same neighbours are not always the pair.
        order = voted[np.argsort(noisy)][int(rng.random() < 0.5) :]
        pairs = [
            (a, b) if votes[a] == AGREE else (b, a)
            for a, b in zip(order[::2], order[1::2], strict=False)
            if votes[a] != votes[b] and abs(popular[a] - popular[b]) <= MAX_GAP
        ]
        if len(pairs) >= MIN_CONTESTED_PAIRS:
            kept = [pairs[i] for i in rng.permutation(len(pairs))[:MAX_PAIRS]]
            yield from _choices(conversation, p, kept)


TABLES = {"contested": contested_choices, "random": random_choices}


def popularity(conversation: Conversation) -> np.ndarray:
    """log((agree + 1) / (disagree + 1)) among training participants, `[S]`."""
    votes = conversation.votes[conversation.split == splits.SPLITS.index("train")]
    agree, disagree = ((votes == vote).sum(axis=0) for vote in (AGREE, DISAGREE))
    return np.log((agree + 1) / (disagree + 1))


def _choices(
    conversation: Conversation, p: int, pairs: list[tuple[int, int]]
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
