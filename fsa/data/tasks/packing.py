"""Packs the pairs of a batch into rows of a few static lengths, on the host.

The two texts of a pair lie next to each other in one row, so that no device needs a
number of another one to compute the loss of a pair. Rows are packed by best fit, the
longest pair first (Johnson 1974), which depends on the pairs' lengths alone and not on
the number of devices or processes. A row is then as short as the allowed lengths let it
be. These lengths are chosen once, for the batches that a task will draw.

Shapes: B users of a batch, R rows for each, T tokens of a row, K places for pairs in a
row; 2 is (chosen, rejected).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fsa.language.token_table import RowTokens, TokenTable

AUTO, ROWS, PADDED = PACKINGS = ("auto", "rows", "padded")

# Programs hold the step of a row once for each length of a row.
_MOST_LENGTHS = 4
# Lengths of rows are multiples of this many tokens.
_STEP = 32
# The longest row in terms of the longest pair, or of so many of them that they have at
# least `_FEW` tokens, if a batch has as many: short rows do not use matrix units well.
_STRETCHES, _FEW = (1, 1.25, 1.5, 1.75, 2, 2.5, 3), 512


class Rows(NamedTuple):
    """Rows of one length, of a batch whose users are split over devices.

    They are B times R places for rows; `pair` tells which rows exist. A row is with any
    of the users, not only with its own.

    Attributes:
      tokens: `[B, R, T]`, the tokens, with places for K pairs each.
      user: `[B, R, K]` int32, the position in the batch of each pair's user.
      pair: `[B, R, K]` int32, the number of the pair among its user's; -1 for none.
      reference: `[B, R, K, 2]` float32, log-probabilities under the reference.
    """

    tokens: RowTokens
    user: np.ndarray
    pair: np.ndarray
    reference: np.ndarray


@dataclasses.dataclass(frozen=True)
class Packing:
    """How rows are made.

    Attributes:
      lengths: lengths T of rows, ascending; the last holds any pair.
      places: K.
      longest: an upper bound of a pair's tokens.
    """

    lengths: tuple[int, ...]
    places: int
    longest: int

    def rows_of_each(self, batch_size: int, pairs: int) -> int:
        """Returns R, with which every batch has places for all of its rows.

        Args:
          batch_size: B.
          pairs: most pairs of each user.
        """
        total = batch_size * pairs
        # Two rows that are not full by number have more tokens than one row can hold.
        tokens = 2 * total * self.longest // self.lengths[-1] + 1
        rows = min(total, tokens + total // self.places)
        return -(-rows // batch_size)


def choose(
    batches: Sequence[np.ndarray], longest: int, together: int | None = None
) -> Packing:
    """Chooses the lengths of rows with few tokens, padding included.

    Of all choices within 1 % of the fewest tokens it takes one with the fewest lengths,
    each of which takes time to compile.

    Args:
      batches: the numbers of tokens of the pairs of some batches.
      longest: an upper bound of the number of tokens of any pair.
      together: None if rows are computed one after the other. Otherwise devices compute
        rows together, and one length is chosen so that a multiple of this number, the
        users of a batch, is filled well: then no device waits for another one, as users
        are split over devices evenly.
    """
    least = min(_FEW, int(np.mean([lengths.sum() for lengths in batches])))
    shortest = -(-least // longest) * longest
    wanted = {stretch * shortest for stretch in _STRETCHES}
    found = []
    for width in sorted(-int(-x // _STEP) * _STEP for x in wanted):
        packed = [best_fit(lengths, width, len(lengths)) for lengths in batches]
        both = zip(batches, packed, strict=True)
        used = [lengths[row].sum() for lengths, rows in both for row in rows]
        # Twice as many places as most rows need; the others are split.
        most = np.quantile([len(row) for rows in packed for row in rows], 0.9)
        places = 2 * int(most)
        if together is not None:
            total = width * sum(-(-len(rows) // together) for rows in packed)
            found.append((total, Packing((width,), places, longest)))
            continue
        for number in range(1, _MOST_LENGTHS + 1):
            lengths, total = lengths_of(np.array(used), width, number)
            found.append((total, Packing(lengths, places, longest)))
    fewest = 1.01 * min(total for total, _ in found)
    good = [each for each in found if each[0] <= fewest]
    _, best = min(good, key=lambda each: (len(each[1].lengths), each[0]))
    return best


def at_once(
    packing: Packing, batches: Sequence[np.ndarray], batch_size: int, parts: int
) -> int:
    """Returns the number of rows with which a device computes most batches at once.

    Args:
      packing: how rows are made, of one length.
      batches: the numbers of tokens of the pairs of some batches.
      batch_size: B.
      parts: number of devices that a batch is split over.
    """
    (width,) = packing.lengths
    device = _spread(batch_size) // (batch_size // parts)

    def fullest(lengths):
        rows = len(best_fit(lengths, width, packing.places))
        return np.bincount(device[np.arange(rows) % batch_size]).max()

    counts = [fullest(lengths) for lengths in batches]
    return int(np.quantile(counts, 0.9, method="higher"))


def padding(rows: Sequence[Rows]) -> float:
    """Returns the share of padding among the tokens of a batch's rows."""
    real = sum(found.tokens.stop.max((-2, -1)).sum() for found in rows)
    total = sum(
        found.tokens.tokens.shape[-1] * (found.pair >= 0).any(-1).sum()
        for found in rows
    )
    return 1 - real / total


def lengths_of(
    used: np.ndarray, width: int, number: int
) -> tuple[tuple[int, ...], int]:
    """Chooses the lengths of rows that leave the least padding.

    The rows in order of size are cut into groups, each of which gets the length of its
    largest, by dynamic programming.

    Args:
      used: the numbers of tokens in rows.
      width: the largest length, which is always among them.
      number: how many lengths there may be.

    Returns:
      The lengths, ascending, and the number of tokens of all rows with padding.
    """
    sizes, counts = np.unique(-(-used // _STEP) * _STEP, return_counts=True)
    if sizes[-1] < width:
        sizes, counts = np.append(sizes, width), np.append(counts, 0)
    before = np.concatenate([[0], np.cumsum(counts)])
    total = np.where(np.arange(len(sizes) + 1) > 0, np.inf, 0)
    cuts = []
    for _ in range(min(number, len(sizes))):
        # costs[s, e]: groups so far end at s, the next one has the sizes from s to e.
        rows = before[None, :] - before[:, None]
        costs = total[:, None] + rows * np.append(0, sizes)
        costs[np.tril_indices(len(costs))] = np.inf
        cuts.append(costs.argmin(0))
        total = costs.min(0)
    end, lengths = len(sizes), []
    for cut in reversed(cuts):
        lengths.append(int(sizes[end - 1]))
        end = int(cut[end])
    return tuple(reversed(lengths)), int(total[-1])


def best_fit(lengths: np.ndarray, width: int, places: int) -> list[list[int]]:
    """Packs items into rows, the longest first, each where the least room is left.

    Args:
      lengths: `[items]`, none above `width`.
      width: tokens of a row.
      places: most items of a row.

    Returns:
      The items of each row. Of equal items the first goes first, and of rows with equal
      room the first one is filled.
    """
    rows: list[list[int]] = []
    room = np.empty(0, np.int64)
    for item in np.argsort(-np.asarray(lengths), kind="stable"):
        left = room - lengths[item]
        fits = np.flatnonzero(left >= 0)
        if len(fits):
            row = fits[left[fits].argmin()]
        else:
            row, room = len(rows), np.append(room, width)
            rows.append([])
        rows[row].append(int(item))
        room[row] -= lengths[item]
        if len(rows[row]) == places:
            room[row] = -1
    return rows


def pack(
    packing: Packing,
    tokens: TokenTable,
    log_prob: np.ndarray,
    pairs: np.ndarray,
    positions: np.ndarray,
) -> tuple[Rows, ...]:
    """Packs the pairs of a batch into rows, and fills the rows of some positions.

    Args:
      packing: how rows are made.
      tokens: tokens of all items.
      log_prob: `[I]`, log-probabilities of all items under the reference.
      pairs: `[B, P, 2]`, items of the complete batch; -1 for no pair.
      positions: of the users whose rows are wanted, ascending.

    Returns:
      The rows of each length. Rows of one length are spread over the users so that any
      equal blocks of users, as many as a power of two, have as many rows, plus or minus
      one.
    """
    batch, most = pairs.shape[:2]
    users, numbers = np.nonzero(pairs[:, :, 0] >= 0)
    items = pairs[users, numbers]
    lengths = tokens.length[items].sum(-1)
    rows = best_fit(lengths, packing.lengths[-1], packing.places)
    used = np.array([lengths[row].sum() for row in rows])
    size_of_row = np.searchsorted(packing.lengths, used)
    shape = len(positions), packing.rows_of_each(batch, most)
    place_of = {int(position): place for place, position in enumerate(positions)}
    spread = _spread(batch)
    filled = []
    for size, width in enumerate(packing.lengths):
        found = _empty(shape, packing.places, width)
        for number, row in enumerate(np.flatnonzero(size_of_row == size)):
            turn, turns = number % batch, number // batch
            place = place_of.get(int(spread[turn]))
            if place is not None:
                own = rows[row]
                at = (place, turns)
                _fill(found, at, tokens, items[own])
                found.user[at][: len(own)] = users[own]
                found.pair[at][: len(own)] = numbers[own]
                found.reference[at][: len(own)] = log_prob[items[own]]
        filled.append(found)
    return tuple(filled)


def _spread(size: int) -> np.ndarray:
    """Returns 0 to `size` - 1 so that beginnings are spread evenly (bit reversal)."""
    bits = max(1, (size - 1).bit_length())
    order = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits)]
    return np.array([i for i in order if i < size])


def _empty(shape: tuple[int, int], places: int, width: int) -> Rows:
    def zeros(*more, dtype=np.int32):
        return np.zeros((*shape, *more), dtype)

    of_texts = [zeros(places, 2) for _ in range(3)]
    return Rows(
        RowTokens(zeros(width), *of_texts),
        zeros(places),
        zeros(places) - 1,
        zeros(places, 2, dtype=np.float32),
    )


def _fill(rows: Rows, at: tuple[int, int], tokens: TokenTable, items: np.ndarray):
    """Writes the texts of some pairs `[pairs, 2]` into one row."""
    row = RowTokens(*(x[at] for x in rows.tokens))
    length = tokens.length[items].ravel()
    stop = np.cumsum(length)
    # Places without a pair are at the end of the texts.
    for values in (row.first, row.start, row.stop):
        values[:] = stop[-1]
    row.first[: len(items)] = (stop - length).reshape(items.shape)
    row.start[: len(items)] = row.first[: len(items)] + tokens.start[items]
    row.stop[: len(items)] = stop.reshape(items.shape)
    row.tokens[: stop[-1]] = np.concatenate([tokens[item] for item in items.ravel()])
