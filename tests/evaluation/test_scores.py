"""Scoring: what a model is shown and asked, and what is made of its answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsa.data.tasks.simulated import Continuum, TwoTypes
from fsa.data.tasks.task import TEST, VALID, Task, reversed_test_episode
from fsa.episodes import Choices, Episode, Options
from fsa.evaluation import scores
from fsa.evaluation.scores import FewShotPredictor, Predictions
from fsa.latent import DiagonalGaussian
from fsa.models.reward import RewardModel

pytestmark = pytest.mark.usefixtures("quick_compile")

USERS, EPISODES, N, M, D = 11, 3, 5, 7, 2
SIZES = (0, 1, 3, 5)
TASK_SIZES = dict(
    batch_size=2,
    max_context=N,
    num_targets=M,
    test_context=N,
    test_targets=M,
    num_users={VALID: 5, TEST: USERS},
)


class Spy:
    """A model whose z is the context itself, and whose answers name the targets.

    log p of target m is -(its chosen option + the sum of the context's chosen ones).
    """

    latent_dim = 2 * N

    def apply(self, variables, *args, method):
        return method(*args)

    def encode(self, context):
        shown = jnp.stack(
            [x.features[:, 0] for x in (context.chosen, context.rejected)]
        )
        mean = jnp.where(context.mask, shown, -1.0).ravel()
        return DiagonalGaussian(mean, jnp.full_like(mean, -3.0))

    def log_prob(self, target, z):
        context = jnp.where(z[:, :N] > 0, z[:, :N], 0.0).sum(axis=1)
        return -(target.chosen.features[:, 0] + context[:, None])


def predictor(model, task: Task, sizes=SIZES, **kwargs):
    settings = dict(
        num_context=sizes,
        episodes_per_user=EPISODES,
        num_samples=2,
        deterministic=True,
        key=jax.random.key(0),
        examples_at_once=4 * EPISODES,
    )
    return FewShotPredictor(model, task, TEST, **{**settings, **kwargs})


@pytest.fixture(scope="module")
def spied():
    """What the spy saw of TwoTypes, with the exact choices."""
    return predictor(Spy(), TwoTypes(**TASK_SIZES))(None)


def test_shapes(spied):
    shapes = {name: np.shape(value) for name, value in spied._asdict().items()}
    user, size = (USERS, EPISODES), (USERS, EPISODES, len(SIZES))
    targets, latent = (*size, M), (*size, 2 * N)
    assert shapes == {
        "log_prob": targets,
        "flipped": targets,
        "bayes": targets,
        "effective_samples": size,
        "mask": (*user, M),
        "informative": size,
        "target_differs": (*user, M),
        "latent_mean": latent,
        "latent_kl": latent,
        "group": (USERS,),
    }


def test_contexts_are_prefixes_of_one_another(spied):
    full = spied.latent_mean[:, :, -1].reshape(USERS, EPISODES, 2, N)
    assert (full >= 0).all()
    for index, n in enumerate(SIZES):
        shown = spied.latent_mean[:, :, index].reshape(USERS, EPISODES, 2, N)
        expected = np.where(np.arange(N) < n, full, -1)
        assert np.array_equal(shown, expected)


def test_targets_are_the_same_after_every_context(spied):
    full = spied.latent_mean[:, :, -1].reshape(USERS, EPISODES, 2, N)[:, :, 0]
    asked = -spied.log_prob[:, :, 0]
    for index, n in enumerate(SIZES):
        shown = full[..., :n].sum(-1)
        expected = -(asked + shown[..., None])
        np.testing.assert_allclose(spied.log_prob[:, :, index], expected, rtol=1e-4)
    # No target is in the context, and every episode is another.
    assert not np.isin(asked, full).any()
    assert len(np.unique(asked)) == asked.size
    assert spied.mask.all()


def test_flipped_contexts_are_those_of_the_other_type(spied):
    """Where the types disagree, the other option of the same pair is the chosen one."""
    chosen, rejected = np.moveaxis(
        spied.latent_mean[:, :, -1].reshape(USERS, EPISODES, 2, N), 2, 0
    )

    def order(user_type):
        reward = functools.partial(TwoTypes.reward, user_type=user_type)
        return np.asarray(reward(chosen)) > np.asarray(reward(rejected))

    differs = order(0) != order(1)
    other = np.where(differs, rejected, chosen)
    for index, n in enumerate(SIZES):
        shown = spied.log_prob[:, :, 0] - spied.flipped[:, :, index]
        expected = np.broadcast_to(other[..., :n].sum(-1, keepdims=True), shown.shape)
        np.testing.assert_allclose(shown, expected, rtol=1e-4, atol=1e-5)
        informative = differs[..., :n].any(-1)
        assert np.array_equal(spied.informative[:, :, index], informative)
    assert differs.any() and not differs.all()


def test_kl_is_from_the_prior_of_no_context(spied):
    """Both stds are exp(-3), so the KL is half the squared shift over exp(-6)."""
    shift = spied.latent_mean - spied.latent_mean[:, :, :1]
    expected = 0.5 * shift.astype(np.float64) ** 2 * np.exp(6)
    np.testing.assert_allclose(spied.latent_kl, expected, rtol=1e-4)
    assert not spied.latent_kl[:, :, 0].any()


def test_bayes_sees_the_same_context(spied):
    """In the exact task it is certain or has no idea, and never wrong."""
    p = np.exp(spied.bayes)
    told = spied.informative[..., None]
    unsure = ~told & spied.target_differs[:, :, None]
    np.testing.assert_allclose(p, np.where(unsure, 0.5, 1), rtol=1e-6)
    assert np.isinf(spied.effective_samples).all()


class Recorded:
    """A task of episodes that lie in its tables; nobody knows the best predictor."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)

        def choices(size):
            def options():
                features = rng.normal(size=(USERS, size, 1)).astype(np.float32)
                return Options(features, np.full((USERS, size), -1, np.int32))

            return Choices(options(), options(), np.ones((USERS, size), bool))

        self.constants = Episode(choices(N), choices(M), np.zeros(USERS, np.int32))

    def users(self, split):
        return np.arange(USERS)

    def test_episode(self, constants, split, user, key):
        return reversed_test_episode(jax.tree.map(lambda x: x[user], constants))

    def bayes_log_prob(self, episode, key):
        return None


def test_a_model_without_context_has_the_prior_alone():
    """A small model of random parameters, averaging over samples of z."""
    task, model = Recorded(), RewardModel(hidden=8, latent_dim=D)
    episode = jax.tree.map(lambda x: x[0], task.constants)
    shapes = jax.eval_shape(model.init, jax.random.key(0), episode)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.7, x.shape).astype(np.float32), shapes["params"]
    )
    statistics = {"options": {"mean": np.zeros(1), "std": np.ones(1)}}
    predict = predictor(model, task, deterministic=False)
    found = predict({"params": params, "statistics": statistics})
    # The same noise, and no choice to flip.
    np.testing.assert_allclose(
        found.log_prob[:, :, 0], found.flipped[:, :, 0], rtol=1e-5
    )
    prior = found.latent_mean[:, :, 0]
    np.testing.assert_allclose(prior, np.broadcast_to(prior[0, 0], prior.shape))
    assert (found.latent_mean[:, :, 1:].std(0) > 1e-4).all()
    assert found.latent_kl[:, :, 0].max() < 1e-6
    assert (found.latent_kl[:, :, 1:].sum(-1) > 1e-4).all()
    # Reversed choices are other choices, so every prediction moves once there are any.
    moved = np.abs(found.log_prob - found.flipped).max(-1) > 1e-5
    assert np.array_equal(moved, found.informative)
    assert np.array_equal(found.informative[0, 0], [n > 0 for n in SIZES])
    assert found.log_prob.max() < 0
    assert found.bayes is None and found.effective_samples is None


def some_predictions(rng, log_prob, flipped=None, **changes):
    """Predictions [U, E, C, M] with every target real, C = 2."""
    users, episodes, sizes, targets = log_prob.shape
    fields = dict(
        log_prob=log_prob,
        flipped=log_prob if flipped is None else flipped,
        bayes=None,
        effective_samples=None,
        mask=np.ones((users, episodes, targets), bool),
        informative=np.ones((users, episodes, sizes), bool),
        target_differs=np.ones((users, episodes, targets), bool),
        latent_mean=rng.normal(size=(users, episodes, sizes, D)),
        latent_kl=rng.gamma(2.0, size=(users, episodes, sizes, D)),
        group=np.arange(users) % 2,
    )
    return Predictions(**{**fields, **changes})


def test_right_is_more_than_half():
    p = np.array([0.9, 0.5, 0.1, 0.50001, 0.49999, 0.0])
    with np.errstate(divide="ignore"):
        found = scores.right(np.log(p))
    assert found.tolist() == [1, 0.5, 0, 1, 0, 0]
    # A rounding error in log(1/2) is still a tie.
    assert scores.right(np.float32(-np.log(2))) == 0.5


def test_means_of_users_weigh_targets_alike():
    values = np.array([[[[1.0, 2, 9]], [[4.0, 9, 9]]], [[[5.0, 9, 9]], [[9, 9, 7.0]]]])
    mask = np.array([[[1, 1, 0], [1, 0, 0]], [[1, 0, 0], [0, 0, 1]]], bool)
    values = np.where(mask[:, :, None], values, np.nan)
    found = scores.user_means(values, mask)
    np.testing.assert_allclose(found, [[7 / 3], [6]])


def test_interval_is_of_the_mean_over_users():
    rng = np.random.default_rng(0)
    values = rng.normal([[0.0, 10.0]], [[1.0, 0.1]], (401, 2))
    found = scores.interval(values, 1000)
    error = values.std(0) / np.sqrt(401)
    expected = np.stack([values.mean(0) - 1.96 * error, values.mean(0) + 1.96 * error])
    # The bootstrap's own noise is a tenth of the half-width.
    np.testing.assert_allclose(found, expected.T, atol=0.3 * error.max())
    np.testing.assert_allclose((found - expected.T)[1], 0, atol=0.3 * error[1])
    assert np.array_equal(found, scores.interval(values, 1000))
    assert not np.array_equal(found, scores.interval(values, 1000, seed=1))
    assert np.isnan(scores.interval(values[:1], 10)).all()


def test_interval_of_users_who_agree():
    np.testing.assert_allclose(scores.interval(np.full((5, 1), 0.7), 50), 0.7)


def test_confidence_is_in_the_predicted_option():
    mask = np.array([[True, True], [False, True]])
    log_prob = np.log([[0.9, 0.2], [0.3, 0.5]])
    stated, correct = scores.confidence(log_prob, mask)
    np.testing.assert_allclose(stated, [0.9, 0.8, 0.5])
    assert correct.tolist() == [1, 0, 0.5]


def test_calibration_of_a_calibrated_and_of_a_boastful_model():
    rng = np.random.default_rng(11)
    p = rng.uniform(0.5, 1, 20_000)
    right = rng.uniform(size=p.shape) < p

    def error(stated):
        log_prob = np.log(np.where(right, stated, 1 - stated)).reshape(100, 200)
        return scores.calibration(log_prob, np.ones((100, 200), bool))

    ece, expected = error(p)
    # A bin's mean has a standard error of at most 0.011, its size 0.8 of that.
    assert 0 < expected < 0.01
    assert abs(ece - expected) < 0.007
    boastful, expected = error(1 - (1 - p) / 3)
    gap = np.mean(1 - (1 - p) / 3) - right.mean()
    np.testing.assert_allclose(boastful, gap, atol=0.005)
    assert expected < 0.01


def test_flip_rate_by_hand():
    """Counted: informative contexts and disputed targets alone."""
    yes, no = np.log(0.9), np.log(0.2)
    # One user, one episode, three sizes, four targets.
    log_prob = np.array([[[[yes, yes, no, yes]] * 3]])
    flipped = np.array([[[[no, no, yes, no], [no, yes, yes, no], [yes, yes, no, no]]]])
    predictions = some_predictions(
        np.random.default_rng(0),
        log_prob,
        flipped,
        informative=np.array([[[False, True, True]]]),
        target_differs=np.array([[[True, True, True, False]]]),
    )
    assert scores.flip_rate(predictions) == [None, 2 / 3, 0.0]


def test_summary_of_hand_made_predictions():
    p = np.array([[[[0.9, 0.2], [0.8, 0.7]]], [[[0.6, 0.5], [0.1, 0.9]]]])
    mask = np.array([[[True, True]], [[True, False]]])
    rng = np.random.default_rng(0)
    predictions = some_predictions(
        rng, np.log(p), mask=mask, bayes=np.log(np.full_like(p, 0.75))
    )
    found = scores.summarize(predictions, 100)
    assert found["users"] == 2
    # Means over users of means over their targets.
    np.testing.assert_allclose(found["accuracy"], [(0.5 + 1) / 2, (1 + 0) / 2])
    nll = -np.log(p)
    first, second = nll[0, 0].mean(1), nll[1, 0, :, 0]
    np.testing.assert_allclose(found["nll"], (first + second) / 2)
    assert found["ceiling_accuracy"] == [1, 1]
    np.testing.assert_allclose(found["ceiling_nll"], -np.log(0.75))
    for index in range(2):
        low, high = found["accuracy_ci"][index]
        assert low <= found["accuracy"][index] <= high
        stated = np.maximum(p, 1 - p)[:, 0, index][mask[:, 0]]
        correct = (p > 0.5)[:, 0, index][mask[:, 0]]
        # Ten bins of three predictions: each is its own bin.
        expected = np.abs(stated - correct).mean()
        np.testing.assert_allclose(found["ece"][index], expected, rtol=1e-5)


def test_diagnostics_of_hand_made_latents():
    rng = np.random.default_rng(0)
    mean = np.zeros((7, 2, 2, D))
    # At the second size, unit 0 tells users apart and unit 1 tells episodes apart.
    mean[:, :, 1, 0] = np.linspace(-1, 1, 7)[:, None]
    mean[:, 0, 1, 1], mean[:, 1, 1, 1] = -1, 1
    kl = np.zeros((7, 2, 2, D))
    kl[:, :, 1] = [0.5, 2.0]
    effective = rng.uniform(100, 200, (7, 2, 2))
    predictions = some_predictions(
        rng,
        np.log(np.full((7, 2, 2, 3), 0.6)),
        latent_mean=mean,
        latent_kl=kl,
        effective_samples=effective,
    )
    task = Continuum(**TASK_SIZES)
    found = scores.diagnose(predictions, task)
    assert found["latent_dim"] == D
    assert found["active_units"] == [0, 1]
    assert found["kl_per_dimension"] == [[0, 0], [0.5, 2.0]]
    assert found["flips_are_types"] is False
    samples = found["bayes_effective_samples"]
    np.testing.assert_allclose(
        samples["median"], [np.median(effective[:, :, c]) for c in (0, 1)]
    )
    np.testing.assert_allclose(
        samples["5th_percentile"],
        [np.quantile(effective[:, :, c].ravel(), 0.05) for c in (0, 1)],
    )
    # What is exact has no sample size to report.
    exact = predictions._replace(effective_samples=np.full((7, 2, 2), np.inf))
    assert "bayes_effective_samples" not in scores.diagnose(exact, task)


def test_evaluation_tells_groups_apart():
    """Group 0 is always right, group 1 never."""
    p = np.where(np.arange(5) % 2 == 0, 0.8, 0.3)[:, None, None, None]
    log_prob = np.log(np.broadcast_to(p, (5, 2, 2, 3)))
    predictions = some_predictions(np.random.default_rng(0), log_prob)
    task = TwoTypes(**TASK_SIZES)
    found = scores.evaluation(predictions, task, (0, 3), num_resamples=50)
    assert found["n_context"] == [0, 3]
    assert found["users"] == 5
    np.testing.assert_allclose(found["accuracy"], 3 / 5)
    groups = found["groups"]
    assert {name: g["users"] for name, g in groups.items()} == {
        "type 0": 3,
        "type 1": 2,
    }
    assert groups["type 0"]["accuracy"] == [1, 1]
    assert groups["type 1"]["accuracy"] == [0, 0]
    np.testing.assert_allclose(groups["type 1"]["nll"], -np.log(0.3))
    assert found["ceiling_accuracy"] is None and found["ceiling_nll"] is None
    # Where all are of one kind there is nothing to tell apart.
    one = scores.evaluation(
        predictions._replace(group=np.zeros(5, int)),
        Continuum(**TASK_SIZES),
        (0, 3),
        num_resamples=50,
    )
    assert one["groups"] == {}


class Unasked(TwoTypes):
    """The task, in which every other user has no target."""

    def test_episode(self, constants, split, user, key):
        test = super().test_episode(constants, split, user, key)
        target = test.episode.target
        target = target._replace(mask=target.mask & (user % 2 == 0))
        return test._replace(episode=test.episode._replace(target=target))


def test_users_without_a_target_are_not_scored(spied):
    """As happens when none of a person's votes made a pair: not a NaN in the report.

    Nor do the sizes asked for or the batches change what the others are shown.
    """
    found = predictor(
        Spy(), Unasked(**TASK_SIZES), (3,), diagnose=False, examples_at_once=1
    )(None)
    assert found.group.shape == ((USERS + 1) // 2,)
    np.testing.assert_array_equal(found.group, spied.group[::2])
    for name in ("log_prob", "latent_mean"):
        got, everyone = getattr(found, name), getattr(spied, name)
        np.testing.assert_allclose(got[:, :, 0], everyone[::2, :, 2], rtol=1e-5)
    assert np.isfinite(scores.user_means(found.log_prob, found.mask)).all()
    assert found.flipped is None and found.bayes is None
