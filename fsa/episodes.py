"""Episodes: a user's choices, split into a context set and a disjoint target set.

Every draw is a pure function of a key, and `example_key` makes that key from (seed, step,
row): any step can be replayed, each epoch draws afresh, and the draw does not depend on
how rows are spread over devices. One unbatched user in, static padded shapes out;
callers vmap.

Shapes: L choices of one user, J judged items of one user, N most context choices, M
most target choices, F features. Masks are true where an entry is real.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Options(NamedTuple):
    """Things that can be chosen.

    Attributes:
      features: `[..., F]`.
      item: `[...]` int32, row in the table of known items; -1 where unknown.
    """

    features: jax.Array
    item: jax.Array


class Choices(NamedTuple):
    """A padded set of choices; which option was shown first is not recorded.

    Attributes:
      chosen: options `[N]`.
      rejected: options `[N]`.
      mask: `[N]`.
    """

    chosen: Options
    rejected: Options
    mask: jax.Array


class Episode(NamedTuple):
    """What one user chose, as given to the model and as asked of it.

    Attributes:
      context: choices `[N]`, from which z is inferred.
      target: choices `[M]`, to predict; none of them is in the context.
      group: int32 scalar, for reports only: no model sees it.
    """

    context: Choices
    target: Choices
    group: jax.Array


class Split(NamedTuple):
    """Positions of one user's choices.

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


def example_key(key: jax.Array, step: jax.Array, position: jax.Array) -> jax.Array:
    """The key of the example at a position of the global batch of a step."""
    return jax.random.fold_in(jax.random.fold_in(key, step), position)


def reverse(choices: Choices) -> Choices:
    """The same pairs, each decided the other way."""
    return Choices(choices.rejected, choices.chosen, choices.mask)


def first_choices(choices: Choices, n: jax.Array) -> Choices:
    """The first n of a padded set of choices `[N]`; the others become padding."""
    kept = choices.mask & (jnp.arange(choices.mask.shape[-1]) < n)
    return choices._replace(mask=kept)


def concatenate(first: Choices, second: Choices) -> Choices:
    """The union of two padded sets, `[N + M]`."""
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
    """Splits one user's choices at random into context and targets, disjoint.

    A random order of the real choices is drawn; its first `num_context` are the
    context, and the targets start right behind them, or at position `first_target`,
    so that the same targets can be asked after contexts of different sizes.

    Args:
      key: a JAX random key.
      mask: `[L]`, which choices are real. L at least max_context + max_targets is not
        needed: what does not exist is masked.
      num_context: int scalar n; cut to max_context and to one less than the number of
        real choices, so that a user with any choice has a target.
      max_context: N.
      max_targets: M.
      first_target: at least max_context, or None for n.

    Returns:
      Positions into `[L]` with masks; masked positions are valid indices.
    """
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
    """Pairs the items that one user judged, where the user would have chosen.

    Items of one prompt are sorted by popularity plus Gaussian noise and paired with
    their neighbour without looking at the user's values, so no item occurs twice. With
    little noise the two are about equally popular, and only knowing the person helps to
    predict the choice; with much noise the pairing is random.

    Args:
      key: a JAX random key.
      values: `[J]`, the user's votes, ratings or ranks; larger is better.
      popularity: `[J]`, of each item among training users.
      prompt: `[J]` int, items are only compared within one prompt.
      mask: `[J]`.
      noise: standard deviation added to popularity before sorting.
      max_gap: pairs whose popularities are further apart are left out, if given.
      min_margin: a pair counts where the values differ by more than this.

    Returns:
      Positions `[J // 2]` of the chosen and of the rejected items, and a mask
      `[J // 2]` of the pairs that count.
    """
    noise_key, offset_key = jax.random.split(key)
    noisy = popularity + noise * jax.random.normal(noise_key, popularity.shape)
    order = jnp.lexsort((noisy, prompt, ~mask))
    # An even or odd start, so that the same neighbours are not always the pair.
    offset = jax.random.bernoulli(offset_key).astype(jnp.int32)
    order = jnp.roll(order, -offset)
    pairs = order[: 2 * (order.shape[0] // 2)].reshape(-1, 2)
    first, second = pairs[:, 0], pairs[:, 1]
    margin = values[first] - values[second]
    # Rolled by one, the last and the first meet, which are no neighbours.
    meet = jnp.arange(len(pairs)) == (order.shape[0] - 1) // 2
    valid = (
        ~((offset == 1) & meet)
        & mask[first]
        & mask[second]
        & (prompt[first] == prompt[second])
        & (jnp.abs(margin) > min_margin)
    )
    if max_gap is not None:
        valid &= jnp.abs(popularity[first] - popularity[second]) <= max_gap
    chosen = jnp.where(margin > 0, first, second)
    rejected = jnp.where(margin > 0, second, first)
    return chosen, rejected, valid


def gather(
    features: jax.Array,
    items: tuple[jax.Array, jax.Array],
    positions: jax.Array,
    mask: jax.Array,
) -> Choices:
    """Looks up the options of some of a user's choices.

    Args:
      features: `[I, F]`, the table of all items.
      items: (chosen, rejected), `[L]` int32 each, rows of `features`.
      positions: `[N]` into `[L]`.
      mask: `[N]`.

    Returns:
      Choices `[N]`; padding has features 0 and item -1.
    """

    def options(index):
        item = jnp.where(mask, index[positions], -1)
        return Options(jnp.where(mask[:, None], features[item], 0), item)

    return Choices(options(items[0]), options(items[1]), mask)
