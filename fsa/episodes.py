"""Episodes: a user's choices, split into a context set and a disjoint target set.

Every draw is a pure function of a key, and `example_key` derives that key from (seed,
step, position in the batch): any step can be replayed, each epoch draws anew, and the
draw does not depend on how examples are distributed over devices. Each function takes
one unbatched user and returns padded arrays of static shapes; callers `jax.vmap` over
users. A wrong shape or type is refused by `chex` when the function is traced.

Shapes: L choices of one user, J rated items of one user, I items of the dataset, N
context choices and M target choices (at most, the rest is padding), F features. Masks
are true where an entry is real.
"""

from typing import NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

# An array of NumPy or of JAX.
Array = np.ndarray | jax.Array


class Options(NamedTuple):
    """Options, which are what can be chosen.

    Attributes:
      features: `[..., F]`.
      item: `[...]` int32, index of the option's item in the dataset; -1 if the option
        is not one of the dataset's items.
    """

    features: jax.Array
    item: jax.Array


class Choices(NamedTuple):
    """A padded set of choices; which option was shown first is not recorded.

    Attributes:
      chosen: options `[N]`.
      rejected: options `[N]`.
      mask: `[N]` bool.
    """

    chosen: Options
    rejected: Options
    mask: jax.Array


class Feedback(NamedTuple):
    """A padded set of whatever one person told; choices are one kind of it.

    Attributes:
      first: options `[N]`: the chosen, tied, liked, disliked or rated one.
      second: options `[N]`: the rejected or tied one; of no meaning where one option
        was judged alone.
      kind: `[N]` int32, `CHOICE`, `TIE`, `LIKE` or `DISLIKE`; `RATING` + k if the first
        option got the k-th of the levels of a scale, from 0 for the worst.
      mask: `[N]` bool.
      weight: `[N]`, above 0: how often each counts.
    """

    first: Options
    second: Options
    kind: jax.Array
    mask: jax.Array
    weight: jax.Array


CHOICE, TIE, LIKE, DISLIKE, RATING = range(5)


class Episode(NamedTuple):
    """One user's choices: a context set to infer z from, and a target set to predict.

    Attributes:
      context: choices `[N]`, from which z is inferred.
      target: choices `[M]`, to predict; none of them is in the context.
      group: int32 scalar, the user's labelled group. Reports use it, and policies with
        latent "group" do; nothing else does.
    """

    context: Choices
    target: Choices
    group: jax.Array


class Split(NamedTuple):
    """Positions of the context and the target set among one user's choices `[L]`.

    Attributes:
      context: `[N]` int32.
      context_mask: `[N]`.
      target: `[M]` int32.
      target_mask: `[M]`.
    """

    context: jax.Array
    context_mask: jax.Array
    target: jax.Array
    target_mask: jax.Array


# Choices or feedback.
_Set = TypeVar("_Set", Choices, Feedback)


def example_key(key: jax.Array, step: jax.Array, position: jax.Array) -> jax.Array:
    """Returns the random key of one example.

    Args:
      key: a JAX random key of the run.
      step: int scalar, the training step.
      position: int scalar, the example's position in the global batch of the step.
    """
    chex.assert_rank([step, position], 0)
    chex.assert_type([step, position], int)
    return jax.random.fold_in(jax.random.fold_in(key, step), position)


def reverse(choices: Choices) -> Choices:
    """Returns the same pairs with chosen and rejected option exchanged."""
    return Choices(choices.rejected, choices.chosen, choices.mask)


def as_feedback(choices: Choices) -> Feedback:
    """Returns choices `[N]` as feedback `[N]`."""
    kind = jnp.full(choices.mask.shape, CHOICE, jnp.int32)
    weight = jnp.ones(choices.mask.shape)
    return Feedback(choices.chosen, choices.rejected, kind, choices.mask, weight)


def as_votes(choices: Choices) -> Feedback:
    """Returns choices `[N]` as votes `[2 N]`: the chosen are liked, the others not."""

    def alone(options: Options, kind: int) -> Feedback:
        told = as_feedback(Choices(options, options, choices.mask))
        return told._replace(kind=jnp.full_like(told.kind, kind))

    return concatenate(alone(choices.chosen, LIKE), alone(choices.rejected, DISLIKE))


def first_choices(choices: Choices, n: jax.Array) -> Choices:
    """Returns a padded set of choices, of which only the first n stay real.

    Args:
      choices: `[..., N]`.
      n: int scalar.

    Returns:
      Choices `[..., N]`, the same but for a mask that is false from position n on.
    """
    chex.assert_rank(n, 0)
    chex.assert_type([n, choices.mask], [int, bool])
    kept = choices.mask & (jnp.arange(choices.mask.shape[-1]) < n)
    return choices._replace(mask=kept)


def concatenate(first: _Set, second: _Set) -> _Set:
    """Returns the union `[N + M]` of two padded sets of one type, `[N]` and `[M]`."""
    chex.assert_rank([first.mask, second.mask], 1)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def split(
    key: jax.Array,
    mask: jax.Array,
    num_context: jax.Array,
    *,
    max_context: int,
    max_targets: int,
    first_target: int | None = None,
) -> Split:
    """Splits one user's choices at random into disjoint context and target sets.

    A random order of the real choices is drawn. Its first `num_context` are the
    context, and the targets follow directly or start at position `first_target`, so
    that the same targets can be predicted from contexts of different sizes.

    Args:
      key: a JAX random key.
      mask: `[L]`, which choices are real. L may be smaller than max_context +
        max_targets: positions without a choice are masked.
      num_context: int scalar n, limited to max_context and to one less than the number
        of real choices, so that a user with at least one choice has a target.
      max_context: N.
      max_targets: M.
      first_target: at least max_context, or None for n.

    Returns:
      Positions into `[L]` with masks; masked positions are valid indices.
    """
    chex.assert_rank([mask, num_context], [1, 0])
    chex.assert_type([mask, num_context], [bool, int])
    size = max_context + max_targets
    if first_target is not None:
        size = first_target + max_targets
    scores = jnp.where(mask, jax.random.uniform(key, mask.shape), -1.0)
    order = jax.lax.top_k(scores, min(size, mask.shape[0]))[1]
    order = jnp.pad(order, (0, size - order.shape[0]))
    available = jnp.minimum(mask.sum(), size)
    n = jnp.clip(num_context, 0, jnp.clip(available - 1, 0, max_context))
    start = n if first_target is None else first_target
    context = jnp.arange(max_context)
    target = start + jnp.arange(max_targets)
    return Split(
        context=order[context],
        context_mask=context < n,
        target=order[target],
        target_mask=target < available,
    )


def pair_ratings(
    key: jax.Array,
    values: jax.Array,
    popularity: jax.Array,
    prompt: jax.Array,
    mask: jax.Array,
    *,
    noise: float,
    max_gap: float | None = None,
    min_margin: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pairs the items that one user rated and takes the higher rated as chosen.

    Items of one prompt are sorted by popularity plus Gaussian noise and paired with
    their neighbour. The pairing does not depend on the user's ratings, and no item
    occurs twice. With little noise the two items are about equally popular, and only
    knowledge of the user helps to predict the choice; with much noise the pairing is
    random.

    Args:
      key: a JAX random key.
      values: `[J]`, the user's ratings (votes, scores or ranks); larger is better.
      popularity: `[J]`, of each item among training users.
      prompt: `[J]` int, items are only compared within one prompt.
      mask: `[J]`.
      noise: standard deviation of the noise added to popularity before sorting.
      max_gap: pairs whose popularities differ by more than this are left out, if given.
      min_margin: pairs whose values differ by no more than this are left out.

    Returns:
      Positions `[J // 2]` of the chosen and of the rejected items, and a mask
      `[J // 2]` of the pairs that count.
    """
    chex.assert_rank(mask, 1)
    chex.assert_type([prompt, mask], [int, bool])
    chex.assert_equal_shape([values, popularity, prompt, mask])
    noise_key, offset_key = jax.random.split(key)
    noisy = popularity + noise * jax.random.normal(noise_key, popularity.shape)
    order = jnp.lexsort((noisy, prompt, ~mask))
    offset = jax.random.bernoulli(offset_key).astype(jnp.int32)
    chosen, rejected, valid = pair_neighbours(
        order, offset, values, popularity, max_gap=max_gap, min_margin=min_margin
    )
    valid &= mask[chosen] & mask[rejected] & (prompt[chosen] == prompt[rejected])
    return chosen, rejected, valid


def pair_neighbours(
    order: Array,
    offset: int | jax.Array,
    values: Array,
    popularity: Array,
    *,
    max_gap: float | None = None,
    min_margin: float = 0.0,
) -> tuple[Array, Array, Array]:
    """Pairs neighbours in an order of rated items, each item at most once.

    Uses operators alone, so that NumPy arrays give NumPy arrays in their own precision,
    and JAX arrays may be traced.

    Args:
      order: `[J]` int, indices of the rated items, sorted by popularity.
      offset: int scalar, 0 or 1, drawn at random so that the same neighbours are not
        always paired.
      values: `[I]`, the user's ratings; larger is better.
      popularity: `[I]`.
      max_gap: see `pair_ratings`.
      min_margin: see `pair_ratings`.

    Returns:
      The chosen and the rejected items, `[J // 2]` each, and a mask `[J // 2]` of the
      pairs that count.
    """
    chex.assert_rank([order, offset, values], [1, 0, 1])
    chex.assert_type([order, offset], int)
    chex.assert_equal_shape([values, popularity])
    size = order.shape[0]
    pairs = order[(np.arange(2 * (size // 2)) + offset) % max(size, 1)].reshape(-1, 2)
    first, second = pairs[:, 0], pairs[:, 1]
    margin = values[first] - values[second]
    # With an offset the last item is paired with the first, which is no neighbour.
    meet = np.arange(size // 2) == (size - 1) // 2
    valid = ~(meet & (offset == 1)) & (abs(margin) > min_margin)
    if max_gap is not None:
        valid &= abs(popularity[first] - popularity[second]) <= max_gap
    first_wins = margin > 0
    chosen = second + first_wins * (first - second)
    return chosen, first + second - chosen, valid


def gather(
    features: jax.Array,
    items: tuple[jax.Array, jax.Array],
    positions: jax.Array,
    mask: jax.Array,
) -> Choices:
    """Looks up the options of some of a user's choices.

    Args:
      features: `[I, F]`, of all items.
      items: (chosen, rejected), `[L]` int32 each, indices of items.
      positions: `[N]` int, indices into `[L]`.
      mask: `[N]`.

    Returns:
      Choices `[N]`; padding has features 0 and item -1.
    """
    chex.assert_rank([features, *items, mask], [2, 1, 1, 1])
    chex.assert_type([*items, positions, mask], [int, int, int, bool])
    chex.assert_equal_shape(items)
    chex.assert_equal_shape([positions, mask])

    def options(index):
        item = jnp.where(mask, index[positions], -1)
        return Options(jnp.where(mask[:, None], features[item], 0), item)

    return Choices(options(items[0]), options(items[1]), mask)
