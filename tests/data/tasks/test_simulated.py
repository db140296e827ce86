"""Simulated users: what they choose, and that Bayes-optimal predictions are so."""

import functools

import jax
import numpy as np
import pytest
from scipy import special, stats

from fsa.data.tasks.simulated import Continuum, IdealPoint, TwoTypes
from fsa.data.tasks.task import TEST, VALID
from fsa.episodes import Choices

pytestmark = pytest.mark.usefixtures("quick_compile")

N, M, SLOPE = 5, 7, 3.0
CONTINUOUS = (Continuum, IdealPoint)
OF_CONTINUOUS = (Continuum, pytest.param(IdealPoint, marks=pytest.mark.slow))
USERS = {TwoTypes: 3001, Continuum: 41, IdealPoint: 41}
TRAINED = 2003  # training episodes drawn
SIZES = dict(batch_size=11, max_context=3, num_targets=2, test_targets=M)
KEY = jax.random.key(0)
ERRORS = 5  # standard errors that a mean may be off


def numpy(tree):
    return jax.tree.map(np.asarray, tree)


class Simulation:
    """A task, with every draw of it compiled once."""

    def __init__(self, make, **kwargs):
        self.num_users = {VALID: 13, TEST: USERS[make]}
        context = 50 if make in CONTINUOUS else N
        self.task = task = make(
            **SIZES, **kwargs, test_context=context, num_users=self.num_users
        )

        def program(split):
            return jax.jit(
                lambda users, key: jax.vmap(
                    lambda user: task.test_episode((), split, user, key)
                )(users)
            )

        self._draw = {split: program(split) for split in (VALID, TEST)}
        self._train = jax.jit(
            jax.vmap(lambda key: task.train_episode((), np.int32(0), key))
        )
        # It draws thousands of samples for each user, so some optimization pays.
        optimize = {"xla_backend_optimization_level": 1}
        self._best = jax.jit(jax.vmap(task.bayes_log_prob), compiler_options=optimize)
        self.test = self.draw(TEST)
        self._found = {}

    def draw(self, split, key=KEY):
        users = self.task.users(split)
        return numpy(self._draw[split](users, key))

    def train(self, key=KEY):
        return numpy(self._train(jax.random.split(key, TRAINED)))

    def best(self, n):
        """log p(target | n choices) of users [U, M], and effective sizes [U]."""
        if n not in self._found:
            self._found[n] = self.best_of(self.test.episode, n)
        return self._found[n]

    def best_of(self, episode, n):
        first = np.arange(episode.context.mask.shape[-1]) < n
        context = episode.context._replace(mask=episode.context.mask & first)
        keys = jax.random.split(KEY, len(episode.group))
        log_prob, effective = self._best(episode._replace(context=context), keys)
        return np.float64(log_prob), np.float64(effective)


@pytest.fixture(scope="module")
def simulations():
    return functools.cache(Simulation)


@pytest.fixture(scope="module")
def exact(simulations):
    return simulations(TwoTypes)


@pytest.fixture(scope="module")
def noisy(simulations):
    return simulations(TwoTypes, slope=SLOPE)


@pytest.fixture(scope="module")
def continuum(simulations):
    return simulations(Continuum)


def within_error(values, expected):
    """Whether the mean of one value a user is what is expected, by its spread."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values))
    return abs(values.mean() - expected) < ERRORS * error


def reward(y, user_type):
    """The task's definition, once more."""
    if y < 0.5:
        return y
    return 2 * y if user_type == 0 else 1 - y


REWARD = np.vectorize(reward)


def gaps(choices, user_type):
    """r(chosen) - r(rejected) `[U, N]` of users of a type `[U]` or scalar."""
    chosen, rejected = (
        np.float64(x.features[..., 0]) for x in (choices.chosen, choices.rejected)
    )
    types = np.broadcast_to(np.reshape(user_type, (-1, 1)), chosen.shape)
    return REWARD(chosen, types) - REWARD(rejected, types)


def test_rewards_of_the_two_types():
    y = np.array([0.0, 0.25, 0.4999, 0.5, 0.75, 1.0])
    for user_type in (0, 1):
        expected = REWARD(y, user_type)
        np.testing.assert_allclose(TwoTypes.reward(y, user_type), expected, atol=1e-7)
    assert TwoTypes.reward(0.75, 0) == 1.5 and TwoTypes.reward(0.75, 1) == 0.25


def test_choices_follow_the_reward_of_the_type(exact):
    test = exact.test
    group = test.episode.group
    assert within_error(group, 0.5)
    for choices in (test.episode.context, test.episode.target):
        assert choices.mask.all()
        assert (gaps(choices, group) > 0).all()
        assert (choices.chosen.item == -1).all()
    for options in (test.episode.target.chosen, test.episode.target.rejected):
        assert options.features.shape == (len(group), M, 1)
    both = (test.episode.target.chosen, test.episode.target.rejected)
    y = np.concatenate([x.features.ravel() for x in both])
    assert stats.kstest(y, "uniform").pvalue > 1e-4


def test_types_agree_on_half_of_the_pairs(exact):
    test = exact.test
    differs = test.target_differs.mean(1)
    assert within_error(differs, 0.5)
    other = gaps(test.episode.target, 1 - test.episode.group) < 0
    assert np.array_equal(test.target_differs, other)


def test_flipped_context_is_what_the_other_type_chooses(exact):
    test = exact.test
    context, flipped = test.episode.context, test.flipped
    assert (gaps(flipped, 1 - test.episode.group) > 0).all()
    for one, other in ((context.chosen, context.rejected),) * 2:
        kept = np.where(test.context_differs[..., None], other.features, one.features)
        assert np.array_equal(flipped.chosen.features, kept)
    total = context.chosen.features + context.rejected.features
    pairs = flipped.chosen.features + flipped.rejected.features
    assert np.array_equal(total, pairs)
    assert 0.4 < test.context_differs.mean() < 0.6


@pytest.mark.parametrize("n", [0, 1, 3, 5])
def test_best_accuracy_and_nll_are_the_known_ones(exact, n):
    """Types agree on half of the pairs: each choice halves what is unknown."""
    test = exact.test
    log_prob, effective = exact.best(n)
    assert np.isinf(effective).all()
    p = np.exp(log_prob)
    accuracy = np.where(np.isclose(p, 0.5), 0.5, p > 0.5).mean(1)
    assert within_error(accuracy, 1 - 2.0 ** -(n + 2))
    assert within_error(-log_prob.mean(1), np.log(2) * 2.0 ** -(n + 1))
    # A prediction is certain once the types are told apart, else 1/2 where they differ.
    told = test.context_differs[:, :n].any(1)
    unsure = ~told[:, None] & test.target_differs
    np.testing.assert_allclose(p, np.where(unsure, 0.5, 1.0), rtol=1e-6)


@pytest.mark.parametrize("y", [(0.25, 0.25), (0.25, 0.75)])
def test_a_tie_is_decided_either_way(exact, y):
    """Equal float32 rewards happen about once in 5 million pairs; p = 0 is an inf."""
    forth, back = (
        exact.task.choice_log_prob(*map(np.float32, pair), 1) for pair in (y, y[::-1])
    )
    np.testing.assert_allclose(np.exp(forth) + np.exp(back), 1, rtol=1e-6)


def test_noisy_choices_happen_with_the_probability_of_btl(noisy):
    test = noisy.test
    gap = gaps(test.episode.target, test.episode.group).ravel()
    expected = special.expit(SLOPE * np.abs(gap))
    right = gap > 0
    edges = np.quantile(np.abs(gap), [0.25, 0.5, 0.75])
    bins = np.searchsorted(edges, np.abs(gap))
    for b in range(4):
        share = expected[bins == b]
        error = np.sqrt(np.sum(share * (1 - share))) / len(share)
        assert abs(right[bins == b].mean() - share.mean()) < ERRORS * error
    # At 3 times the gap noise is no trifle.
    assert 0.6 < right.mean() < 0.9


def test_noisy_types_disagree_where_their_rewards_do(noisy):
    test = noisy.test
    group = test.episode.group
    for choices, differs in (
        (test.episode.context, test.context_differs),
        (test.episode.target, test.target_differs),
    ):
        signs = np.sign(gaps(choices, group)) != np.sign(gaps(choices, 1 - group))
        assert np.array_equal(differs, signs)
    # The other type met with the same luck: pairs on which types give the same odds
    # are decided alike.
    context, flipped = test.episode.context, test.flipped
    same_odds = np.isclose(gaps(context, 0), gaps(context, 1), atol=1e-6)
    assert same_odds.mean() > 0.2
    kept = context.chosen.features == flipped.chosen.features
    assert kept[same_odds].all() and not kept.all()


def test_noisy_bayes_is_the_mixture_of_the_types(noisy):
    context, target = noisy.test.episode.context, noisy.test.episode.target
    for n in (0, 3):
        found, _ = noisy.best(n)
        likelihood = np.array(
            [special.expit(SLOPE * gaps(context, t))[:, :n].prod(1) for t in (0, 1)]
        )
        weights = likelihood / likelihood.sum(0)
        predictions = [special.expit(SLOPE * gaps(target, t)) for t in (0, 1)]
        expected = np.einsum("tu,tum->um", weights, predictions)
        np.testing.assert_allclose(np.exp(found), expected, rtol=1e-4)


def assert_calibrated(log_prob):
    """Outcomes drawn from the very predictions: -log p is their entropy on average."""
    p = np.exp(log_prob)
    entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
    assert within_error((-log_prob - entropy).mean(1), 0)


@pytest.mark.parametrize("n", [0, 3, 5])
def test_noisy_bayes_is_calibrated(noisy, n):
    assert_calibrated(noisy.best(n)[0])


@pytest.mark.parametrize("make", [TwoTypes, *OF_CONTINUOUS])
def test_draws_depend_on_user_split_and_key_alone(simulations, make):
    simulation = simulations(make)
    again = simulation.draw(TEST)
    for got, same in zip(*map(jax.tree.leaves, (again, simulation.test)), strict=True):
        assert np.array_equal(got, same)
    first = simulation.test.episode.target.chosen.features[:13].reshape(13, -1)
    others = (
        simulation.draw(VALID),
        simulation.draw(TEST, jax.random.key(1)),
    )
    drawn = [x.episode.target.chosen.features[:13].reshape(13, -1) for x in others]
    together = np.concatenate([first, *drawn])
    assert len(np.unique(together, axis=0)) == 39
    trained = simulation.train().target.chosen.features.reshape(TRAINED, -1)
    assert len(np.unique(trained, axis=0)) == TRAINED
    # Float32 uniforms recur now and then, but no user does.
    assert np.isin(trained, together).all(1).sum() == 0


@pytest.mark.parametrize("make", [TwoTypes, *OF_CONTINUOUS])
def test_training_draws_every_context_size(simulations, make):
    episodes = simulations(make).train()
    context, target = episodes.context, episodes.target
    assert context.mask.shape == (TRAINED, 3) and target.mask.shape == (TRAINED, 2)
    assert target.mask.all()
    n = context.mask.sum(1)
    assert stats.chisquare(np.bincount(n, minlength=4)).pvalue > 1e-4
    # Real choices come first; padding is blank, in features too.
    assert np.array_equal(context.mask, np.arange(3) < n[:, None])
    for options in (context.chosen, context.rejected):
        assert not options.features[~context.mask].any()
        assert options.features[context.mask].any(-1).all()


@pytest.mark.parametrize("make", [TwoTypes, *OF_CONTINUOUS])
def test_tasks_say_what_they_are(simulations, make):
    simulation = simulations(make)
    task, target = simulation.task, simulation.test.episode.target
    assert task.training_users(0).tolist() == list(range(11))
    for split, count in simulation.num_users.items():
        assert task.users(split).tolist() == list(range(count))
    mean, std = task.statistics()
    both = np.concatenate([target.chosen.features, target.rejected.features])
    features = both.reshape(-1, task.num_features)
    error = ERRORS * std / np.sqrt(len(features))
    np.testing.assert_allclose(np.abs(features.mean(0) - mean) < error, True)
    np.testing.assert_allclose(features.std(0), std, rtol=0.05)


def reward_gaps(task, choices):
    """Differences (personal [..., 4], shared [...]) of the utilities, in float64."""
    chosen, rejected = (
        [np.float64(x) for x in task.utilities(options.features)]
        for options in (choices.chosen, choices.rejected)
    )
    return chosen[0] - rejected[0], chosen[1] - rejected[1]


def test_utilities_are_standardised_and_scaled():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (50_000, 8)).astype(np.float32)
    personal, shared = Continuum(
        **SIZES, test_context=N, num_users={}, personal=3.0, shared=0.5
    ).utilities(x)
    assert personal.shape == (50_000, 4) and shared.shape == (50_000,)
    for values, scale in ((personal, 3.0), (shared[:, None], 0.5)):
        np.testing.assert_allclose(np.mean(values, 0), 0, atol=0.03 * scale)
        np.testing.assert_allclose(np.std(values, 0), scale, rtol=0.02)
    # g and h belong to the task: another seed is another task.
    other = Continuum(
        **SIZES, test_context=N, num_users={}, map_seed=1, personal=3.0
    ).utilities(x)[0]
    correlation = np.corrcoef(np.asarray(personal).T, np.asarray(other).T)[:4, 4:]
    assert np.abs(np.diag(correlation)).max() < 0.9


def test_continuum_without_context_is_the_average_over_users(continuum):
    """By Gauss-Hermite quadrature: the gap of a pair is N(h, |g|^2) over users."""
    found, effective = continuum.best(0)
    g, h = reward_gaps(continuum.task, continuum.test.episode.target)
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    spread = np.linalg.norm(g, axis=-1)
    gap = h[..., None] + spread[..., None] * nodes
    expected = special.expit(gap) @ weights / weights.sum()
    error = np.abs(np.exp(found) - expected)
    # 4096 draws of a probability have a standard error of at most 0.5 / 64.
    assert error.max() < ERRORS * 0.5 / 64
    assert error.mean() < 0.5 / 64
    assert effective.min() > 1000
    assert_calibrated(np.log(expected))


def reward_gaps_at(task, choices, z):
    """Reward gaps `[S, N]` of one user's choices `[N]` at z `[S, 4]`, in float64."""
    if isinstance(task, Continuum):
        personal, shared = reward_gaps(task, choices)
        return z @ personal.T + shared
    chosen, rejected = (
        np.float64(task.embed(options.features))
        for options in (choices.chosen, choices.rejected)
    )
    away = [np.sqrt(((z[:, None] - x) ** 2).sum(-1)) for x in (chosen, rejected)]
    return task.personal * (away[1] - away[0])


@pytest.mark.parametrize("make", OF_CONTINUOUS)
def test_continuous_bayes_equals_brute_force(simulations, make):
    """Many users from the prior, weighed by the likelihood of the context."""
    simulation = simulations(make)
    z = np.random.default_rng(0).normal(size=(100_000, 4))
    for n in (1, N):
        found, effective = simulation.best(n)
        assert effective.min() > 500
        for user in range(3):
            episode = jax.tree.map(lambda x, u=user: x[u], simulation.test.episode)
            first = jax.tree.map(lambda x, n=n: x[:n], episode.context)
            likelihood = special.log_expit(reward_gaps_at(simulation.task, first, z))
            weights = special.softmax(likelihood.sum(1))
            assert 1 / np.sum(weights**2) > 1000
            p = special.expit(reward_gaps_at(simulation.task, episode.target, z))
            np.testing.assert_allclose(np.exp(found[user]), weights @ p, atol=0.03)


@pytest.mark.parametrize("n", [N, 50])
@pytest.mark.parametrize("make", OF_CONTINUOUS)
def test_continuous_bayes_is_calibrated(simulations, make, n):
    """A choice that did not follow BTL, or z that were not N(0, I), would show."""
    assert_calibrated(simulations(make).best(n)[0])


@pytest.mark.parametrize("make", OF_CONTINUOUS)
def test_continuous_users_differ(simulations, make):
    """Bayes is 15 points better at n = 50 than at n = 0."""
    accuracy, nll = {}, {}
    for n in (0, 50):
        log_prob, effective = simulations(make).best(n)
        assert np.median(effective) >= 100
        accuracy[n], nll[n] = (log_prob > np.log(0.5)).mean(), -log_prob.mean()
    assert accuracy[50] > accuracy[0] + 0.15
    assert nll[50] < nll[0] - 0.1


def test_ideal_points_are_near_what_is_chosen(simulations):
    task = simulations(IdealPoint).task
    x = np.random.default_rng(0).uniform(-1, 1, (20_000, 8)).astype(np.float32)
    points = np.asarray(task.embed(x))
    np.testing.assert_allclose(points.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(points.std(0), 1, rtol=0.02)
    # The best of all options is the one at z, and rewards fall by the distance.
    z = points[7]
    rewards = np.asarray(task.reward(points, z))
    assert rewards.argmax() == 7 and abs(rewards[7]) < 1e-6
    away = z + np.array([[3.0, 0, 4.0, 0]], np.float32)
    np.testing.assert_allclose(task.reward(away, z), -5 * task.personal, rtol=1e-6)


def test_continuum_flips_reverse_every_choice(continuum):
    test = continuum.test
    context = test.episode.context
    for one, other in (
        (test.flipped.chosen, context.rejected),
        (test.flipped.rejected, context.chosen),
    ):
        assert np.array_equal(one.features, other.features)
    assert np.array_equal(test.context_differs, context.mask)
    assert np.array_equal(test.target_differs, test.episode.target.mask)
    assert not Continuum.flips_are_types and TwoTypes.flips_are_types


@pytest.mark.parametrize("make", [TwoTypes, *OF_CONTINUOUS])
def test_bayes_ignores_the_padding(simulations, make):
    """Whatever stands in masked context choices."""
    simulation = simulations(make)
    episode = simulation.test.episode
    context = episode.context
    padding = np.arange(context.mask.shape[1])[:, None] >= 1
    reversed_ = [
        now._replace(features=np.where(padding, other.features, now.features))
        for now, other in (
            (context.chosen, context.rejected),
            (context.rejected, context.chosen),
        )
    ]
    changed = episode._replace(context=Choices(*reversed_, context.mask))
    again = simulation.best_of(changed, 1)[0]
    np.testing.assert_allclose(again, simulation.best(1)[0], rtol=1e-6)
