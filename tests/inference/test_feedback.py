"""What a person may tell besides choices, and intervals that are true."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import options_of, random_ranker

from fsa import episodes
from fsa.episodes import Choices, Feedback, Options
from fsa.errors import InputError
from fsa.inference.option_lookup import BadOption
from fsa.latent import mixture
from fsa.models.linear_reward import LinearRewardModel
from fsa.models.reward import RewardModel

pytestmark = pytest.mark.usefixtures("quick_compile")

F, D, C, K = 3, 2, 2, 2000
LEVELS = (1.0, 2.0, 4.0)
RATINGS = dict(context="ratings", levels=LEVELS, num_components=C)


def vectors(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, F)).astype(np.float32)


def made(make=LinearRewardModel, **kwargs):
    """A ranker whose parameters are random and large enough to matter."""
    return random_ranker(make(hidden=8, latent_dim=D, **kwargs), F, K)


@pytest.fixture(scope="module")
def ranker():
    return made(**RATINGS)


A = vectors(9, 1)
# Everything that a person may tell, each option once.
TOLD = dict(
    chosen=[A[0]],
    rejected=[A[1]],
    tied=[(A[2], A[3])],
    liked=[A[4]],
    disliked=[A[5]],
    rated=[(A[6], 1), (A[7], 4.0), (A[8], 2)],
    weights={"liked": [2], "rated": [1, 0.5, 3]},
)


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(model, method, variables, *args):
    return model.apply(variables, *args, method=method)


def encoded(ranker, feedback):
    return apply(ranker.model, LinearRewardModel.encode, ranker.variables, feedback)


def utility(ranker, options):
    """Features [O, D] and offset [O] in float64."""
    found = apply(
        ranker.model, LinearRewardModel.features, ranker.variables, options_of(options)
    )
    return tuple(np.float64(x) for x in found)


def test_everything_that_is_told_is_one_context(ranker):
    low, middle, high = episodes.RATING + np.arange(3)
    by_hand = Feedback(
        first=options_of(A[[0, 2, 4, 5, 6, 7, 8]]),
        second=options_of(A[[1, 3, 4, 5, 6, 7, 8]]),
        kind=np.array(
            [
                episodes.CHOICE,
                episodes.TIE,
                episodes.LIKE,
                episodes.DISLIKE,
                low,
                high,
                middle,
            ],
            np.int32,
        ),
        mask=np.ones(7, bool),
        weight=np.array([1, 1, 2, 1, 1, 0.5, 3], np.float32),
    )
    found, wanted = ranker.posterior(**TOLD), encoded(ranker, by_hand)
    for got, exact in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-3, atol=1e-4)
    assert found.std.shape == (D,) and (found.std > 0).all()
    ranking = ranker.rank(A, **TOLD)
    counts = dict(chosen=1, tied=1, liked=1, disliked=1, rated=3)
    assert ranking.counts == counts and ranking.num_choices == 1


@pytest.mark.slow
def test_every_kind_alone_tells_something(ranker):
    nothing = ranker.posterior()
    for name in ("tied", "liked", "disliked", "rated"):
        found = ranker.posterior(**{name: TOLD[name]})
        assert abs(found.mean - nothing.mean).max() > 0.01
    both = ranker.posteriors([dict(liked=[A[4]]), ([A[0]], [A[1]])])
    one = ranker.posterior(liked=[A[4]])
    np.testing.assert_allclose(both.mean[0], one.mean, rtol=1e-4, atol=1e-5)
    other = ranker.posterior(chosen=[A[0]], rejected=[A[1]])
    np.testing.assert_allclose(both.mean[1], other.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(both.std[1], other.std, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_tie_is_used_without_having_been_trained_on():
    """It makes a large difference of the two options less likely."""
    ranker = made()
    pair = 3 * A[0], 3 * A[4]
    before = ranker.compare(*pair)
    after = ranker.compare(*pair, tied=[pair] * 40)
    widths = [np.ptp(each.interval) for each in (before, after)]
    assert widths[1] < 0.8 * widths[0]
    assert abs(after.difference) < abs(before.difference)


def test_intervals_of_rewards_are_those_of_samples(ranker):
    ranking = ranker.rank(A[:4], **TOLD)
    f, g = utility(ranker, A[:4])
    q = ranker.posterior(**TOLD)
    z = np.float64(mixture.sample(q, jax.random.key(1), 40_000))
    reward = z @ f.T + g
    others = (reward.sum(1, keepdims=True) - reward) / 3
    apart = reward - others
    np.testing.assert_allclose(ranking.reward, apart.mean(0), atol=0.05)
    ends = np.quantile(apart, [0.05, 0.95], axis=0).T
    np.testing.assert_allclose(ranking.reward_interval, ends, atol=0.08)
    for row, i in zip(ranking.rows(), ranking.order, strict=True):
        assert row["reward_low"] < row["reward"] < row["reward_high"]
        assert row["reward"] == pytest.approx(ranking.reward[i])


def test_a_comparison_agrees_with_the_ranking_of_two(ranker):
    there, back = ranker.compare(A[0], A[1], **TOLD), ranker.compare(A[1], A[0], **TOLD)
    assert there.probability + back.probability == pytest.approx(1, abs=1e-5)
    assert there.difference == pytest.approx(-back.difference, abs=1e-5)
    np.testing.assert_allclose(
        there.interval, -np.array(back.interval)[::-1], atol=1e-4
    )
    low, high = there.probability_interval
    assert low < there.probability < high
    ranking = ranker.rank(A[:2], **TOLD)
    assert ranking.probability[0] == pytest.approx(there.probability, abs=0.03)
    np.testing.assert_allclose(ranking.reward_interval[0], there.interval, atol=1e-4)
    str(there), str(ranking)


@pytest.mark.slow
def test_intervals_cover_people_who_are_drawn_from_the_prior():
    """90% intervals of reward differences, 5,000 at each number of choices."""
    ranker = made(num_components=C)
    model, variables, users, most = ranker.model, ranker.variables, 2500, 30
    rng = np.random.default_rng(0)
    prior = mixture.of_prior(mixture.Mixture(**variables["params"]["prior"]))
    z = mixture.sample(prior, jax.random.key(0), users)

    @jax.jit
    def covered(z, pairs, targets, luck, n):
        """Whether intervals of two targets cover a person's own differences."""

        def gaps(options):
            f, g = model.apply(
                variables,
                Options(options, -jnp.ones(options.shape[:-1], jnp.int32)),
                method=model.features,
            )
            return f[0] - f[1], g[0] - g[1]

        f, g = gaps(pairs)
        first_wins = luck < jax.nn.sigmoid(f @ z + g)
        chosen, rejected = (
            options_of_jax(
                jnp.where((first_wins == first)[:, None], pairs[0], pairs[1])
            )
            for first in (True, False)
        )
        context = Choices(chosen, rejected, jnp.arange(most) < n)
        q = model.apply(variables, context, method=model.encode)
        f, g = gaps(targets)
        low, high = mixture.quantiles(q, f, g, jnp.array([0.05, 0.95]))
        true = f @ z + g
        return (low <= true) & (true <= high)

    def options_of_jax(features):
        return Options(features, -jnp.ones(len(features), jnp.int32))

    pairs = rng.normal(size=(users, 2, most, F)).astype(np.float32)
    targets = rng.normal(size=(users, 2, 2, F)).astype(np.float32)
    luck = rng.uniform(size=(users, most)).astype(np.float32)
    together = jax.jit(jax.vmap(covered, in_axes=(0, 0, 0, 0, None)))
    for n in (0, 1, 3, 10, 30):
        share = np.mean(together(z, pairs, targets, luck, n))
        assert 0.88 <= share <= 0.92, (n, share)


@pytest.mark.parametrize(
    ("model", "told", "how"),
    [
        (dict(make=RewardModel), dict(tied=[(A[0], A[1])]), "model.reward"),
        (dict(make=RewardModel), dict(liked=[A[0]]), "model.context"),
        (
            dict(make=RewardModel),
            dict(chosen=[A[0]], rejected=[A[1]], weights={"chosen": [2]}),
            "model.reward",
        ),
        ({}, dict(liked=[A[0]]), "model.context"),
        ({}, dict(disliked=[A[0]]), "model.context"),
        ({}, dict(rated=[(A[0], 1)]), "model.context"),
        (dict(context="votes"), dict(rated=[(A[0], 1)]), "model.context"),
    ],
)
def test_kinds_that_a_model_was_not_trained_for(model, told, how):
    """The message names the argument, and the field to train with."""
    ranker = made(**model)
    for refused in (
        lambda: ranker.rank(A[:2], **told),
        lambda: ranker.posterior(**told),
    ):
        with pytest.raises(InputError) as error:
            refused()
        name = "weights" if "weights" in told else next(iter(told))
        assert f"`{name}`" in str(error.value) and how in str(error.value)
        assert "\n" not in str(error.value)


def test_only_linear_models_compare():
    with pytest.raises(InputError, match="model.reward"):
        made(make=RewardModel).compare(A[0], A[1])


@pytest.mark.parametrize(
    ("told", "named"),
    [
        (dict(tied=[A[0]]), "tied"),
        (dict(liked="tea"), "liked"),
        (dict(rated=[A[0][:1]]), "rated"),
        (dict(liked=[A[0]], weights={"liked": [1, 2]}), "weights"),
        (dict(liked=[A[0]], weights={"liked": [0]}), "weights"),
        (dict(liked=[A[0]], weights={"likes": [1]}), "weights"),
        (dict(chosen=[A[0]]), "chosen"),
    ],
)
def test_what_is_told_is_checked(ranker, told, named):
    with pytest.raises(InputError, match=f"`{named}`"):
        ranker.posterior(**told)


def test_bad_options_and_ratings_are_told_by_their_number(ranker):
    for told, number in (
        (dict(liked=[A[0], A[1][:2]]), 1),
        (dict(rated=[(A[0], 1), (A[1], 3)]), 1),
        (dict(tied=[(A[0], "tea")]), 0),
    ):
        with pytest.raises(BadOption) as error:
            ranker.posterior(**told)
        assert (error.value.argument, error.value.number) == (next(iter(told)), number)


def test_people_are_pairs_or_dicts(ranker):
    for wrong in ([[A[0]]], [dict(chosen=[A[0]], like=[A[1]])], []):
        with pytest.raises(InputError, match="people"):
            ranker.posteriors(wrong)


def test_feedback_moves_choices_as_it_should(ranker):
    """An option wins more often once it was liked and the other was not."""
    liked = ranker.compare(A[0], A[1], liked=[A[0]] * 4, disliked=[A[1]] * 4)
    disliked = ranker.compare(A[0], A[1], disliked=[A[0]] * 4, liked=[A[1]] * 4)
    assert liked.probability > disliked.probability + 0.1
