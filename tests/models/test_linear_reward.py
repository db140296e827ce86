"""The reward model that is linear in z: symmetries, and its posterior by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_models import (
    ITEMS,
    F,
    M,
    N,
    random_params,
    some_choices,
    some_episode,
    some_masks,
)
from scipy import special
from slow import slow_but

from fsa import episodes, latent
from fsa.data.tasks.simulated import TwoTypes
from fsa.data.tasks.task import TEST, VALID
from fsa.episodes import Episode, Feedback
from fsa.evaluation.predictions import FewShotPredictor
from fsa.latent import Mixture, mixture
from fsa.models import reward_models
from fsa.models.linear_reward import LinearRewardModel, episode_loss
from fsa.training import reward_loss

pytestmark = pytest.mark.usefixtures("quick_compile")

H, D, C, K = 8, 3, 2, 4
LEVELS = (-1.0, 0.0, 0.5, 4.0)
# Between them every option of the model.
MODELS = {
    "plain": dict(num_sweeps=0),
    "mixture": dict(num_components=C, num_layers=2, num_items=ITEMS),
    "votes": dict(context="votes"),
    "ratings": dict(num_components=C, context="ratings", levels=LEVELS),
}
QUICK = "ratings"
NAMES = slow_but((QUICK,), MODELS)


def some_feedback(seed, name="ratings", real=None):
    """Feedback [N] of every kind that the model was trained on."""
    rng = np.random.default_rng(seed)
    choices = some_choices(rng, N, real)
    known = {"votes": 4, "ratings": 4 + len(LEVELS)}.get(name, 2)
    kind = rng.permutation(np.arange(N) % known).astype(np.int32)
    weight = rng.uniform(0.5, 2, N).astype(np.float32)
    return Feedback(choices.chosen, choices.rejected, kind, choices.mask, weight)


class Model:
    """A model with random variables, and what it computes as programs."""

    def __init__(self, name):
        self.module = module = LinearRewardModel(hidden=H, latent_dim=D, **MODELS[name])
        params = random_params(module, some_episode(0), seed=1)
        statistics = {"mean": np.full(F, 0.1), "std": np.full(F, 0.9)}
        self.variables = {"params": params, "statistics": {"options": statistics}}
        self.call = self._compiled(module.__call__)
        self.encode = self._compiled(module.encode)
        self.observations = self._compiled(module.observations)
        self.features = self._compiled(module.features)
        self.log_prob = self._compiled(module.log_prob)
        self.reward = self._compiled(module.reward)
        self.thresholds = self._compiled(module.thresholds)

    def _compiled(self, method):
        return jax.jit(
            lambda *args: self.module.apply(self.variables, *args, method=method)
        )

    @property
    def prior(self) -> Mixture:
        return Mixture(**self.variables["params"]["prior"])


@pytest.fixture(scope="module")
def models():
    return functools.cache(Model)


def close(found, expected, **tolerance):
    """Compares trees; by default up to what float32 loses in Newton steps."""
    tolerance = {"rtol": 1e-3, "atol": 1e-3, **tolerance}
    for got, exact in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, exact, **tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_the_two_orders_have_probabilities_that_add_to_one(models, name):
    for seed in range(3):
        episode = some_episode(seed)
        other = episode._replace(target=episodes.reverse(episode.target))
        both = [np.exp(models(name).call(e)) for e in (episode, other)]
        close(sum(both), np.ones(M), atol=1e-5)
        assert np.ptp(both[0]) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_sets_does_not_matter(models, name):
    rng, model = np.random.default_rng(0), models(name)
    for seed in range(3):
        episode = some_episode(seed, *some_masks(seed))
        order, targets = rng.permutation(N), rng.permutation(M)
        shuffled = Episode(
            jax.tree.map(lambda x, o=order: x[o], episode.context),
            jax.tree.map(lambda x, o=targets: x[o], episode.target),
            episode.group,
        )
        close(model.encode(shuffled.context), model.encode(episode.context))
        close(model.call(shuffled), model.call(episode)[targets])


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_context_gives_the_prior(models, name):
    model, nothing = models(name), np.zeros(N, bool)
    prior = mixture.of_prior(model.prior)
    close(model.encode(some_feedback(1, name, nothing)), prior, atol=1e-5)


def test_masking_a_context_equals_removal(models):
    model, mask = models("ratings"), some_masks(3)[0]
    context = some_feedback(5, "ratings", mask)
    kept = jax.tree.map(lambda x: x[mask], context)
    close(model.encode(context), model.encode(kept))


def bounds(model, kind):
    """What u is between, by the table of `fsa.latent.observations`."""
    inner = [-np.inf, np.inf]
    if model.module.levels:
        inner[1:1] = np.sort(np.float64(model.thresholds()))
    return {
        episodes.CHOICE: (0, np.inf),
        episodes.LIKE: (0, np.inf),
        episodes.DISLIKE: (-np.inf, 0),
    }.get(kind) or (inner[kind - episodes.RATING], inner[kind - episodes.RATING + 1])


@pytest.mark.parametrize("name", MODELS)
def test_log_likelihood_of_feedback_by_hand(models, name):
    """A tie's is that of both outcomes of the choice, up to a constant."""
    model, feedback = models(name), some_feedback(2, name)
    z = np.random.default_rng(3).normal(size=(K, D)).astype(np.float32)
    f, g = (np.float64(x) for x in model.features(feedback.first))
    other, other_g = (np.float64(x) for x in model.features(feedback.second))
    neutral = np.float64(model.variables["params"].get("neutral", np.zeros(D + 1)))
    observed = model.observations(feedback)
    for n, kind in enumerate(feedback.kind):
        alone = kind >= episodes.LIKE
        against = (neutral[:-1], neutral[-1]) if alone else (other[n], other_g[n])
        u = z @ (f[n] - against[0]) + g[n] - against[1]
        one = jax.tree.map(lambda x, n=n: x[n : n + 1], observed)
        found = np.array([one.log_prob(each) for each in z]) / feedback.weight[n]
        if kind == episodes.TIE:
            expected = special.log_expit(u) + special.log_expit(-u)
            found, expected = found - found[0], expected - expected[0]
        else:
            low, high = bounds(model, kind)
            expected = np.log(special.expit(high - u) - special.expit(low - u))
        close(found, expected)


@pytest.mark.parametrize(
    "name", [pytest.param("plain", marks=pytest.mark.slow), "ratings"]
)
def test_posterior_is_that_of_the_observations(models, name):
    """By the functions of `fsa.latent`, and by importance sampling from the prior."""
    model, feedback = models(name), some_feedback(4, name, some_masks(1)[0])
    observed = model.observations(feedback)
    sweeps = model.module.num_sweeps

    @jax.jit
    def by_functions(observed, prior):
        q = latent.laplace(observed, prior, num_steps=30)
        return latent.refine(q, observed, prior, num_sweeps=sweeps) if sweeps else q

    found = model.encode(feedback)
    close(found, by_functions(observed, model.prior))
    assert found.converged.all()
    rng = np.random.default_rng(0)
    log_weight, mean, log_std = (np.float64(x) for x in model.prior)
    which = rng.choice(len(mean), 200_000, p=special.softmax(log_weight))
    z = mean[which] + np.exp(log_std)[which] * rng.normal(size=(200_000, D))
    u = z @ np.float64(observed.features).T + np.float64(observed.offset)
    low, high = np.float64(observed.low), np.float64(observed.high)
    likely = np.log(special.expit(high - u) - special.expit(low - u))
    weight = special.softmax(likely @ np.float64(observed.weight))
    assert 1 / np.sum(weight**2) > 1000
    mean = weight @ z
    std = np.sqrt(weight @ (z - mean) ** 2)
    # What the approximation errs, in standard deviations.
    assert (abs(found.mean - mean) / std < (0.1 if sweeps else 0.35)).all()
    close(found.std / std, np.ones(D), atol=0.1 if sweeps else 0.35)


def test_a_weight_of_two_is_the_feedback_twice(models):
    model, once = models("ratings"), some_feedback(6)
    twice = episodes.concatenate(once, once)
    doubled = once._replace(weight=2 * once.weight)
    posterior, other = (model.encode(x) for x in (doubled, twice))
    # Expectation propagation counts it as one factor or two, which differs a little.
    close(posterior.mean, other.mean, atol=0.03)
    close(posterior.std, other.std, atol=0.03)


def test_unpaired_feedback_alone_moves_z(models):
    """Likes raise what is like the liked option, and dislikes lower it."""
    for name, best, worst in (
        ("votes", episodes.LIKE, episodes.DISLIKE),
        ("ratings", episodes.RATING + len(LEVELS) - 1, episodes.RATING),
    ):
        model, context = models(name), some_feedback(7, name)
        utilities = []
        for kind in (best, worst):
            told = context._replace(kind=np.full(N, kind, np.int32))
            observed, z = model.observations(told), model.encode(told).mean
            utilities.append(np.mean(observed.features @ z + observed.offset))
        assert utilities[0] - utilities[1] > 1


def test_votes_are_likes_and_dislikes(models):
    model, choices = models("votes"), some_episode(8).context
    close(model.encode(choices), model.encode(episodes.as_votes(choices)))
    as_choices = model.encode(episodes.as_feedback(choices))
    assert abs(model.encode(choices).mean - as_choices.mean).max() > 0.05


def test_rewards_are_linear_in_z_and_choices_follow_them(models):
    model, choices = models("mixture"), some_episode(9).target
    z = np.random.default_rng(0).normal(size=(K, D)).astype(np.float32)
    log_probs = model.log_prob(choices, z)
    for k in range(K):
        gap = model.reward(choices.chosen, z[k])[0]
        gap -= model.reward(choices.rejected, z[k])[0]
        close(log_probs[k], special.log_expit(np.float64(gap)))
    ends = [model.reward(choices.chosen, each)[0] for each in z[:2]]
    middle = model.reward(choices.chosen, (z[0] + z[1]) / 2)[0]
    close(middle, (ends[0] + ends[1]) / 2)


@pytest.mark.parametrize(
    "name", ["plain", pytest.param("mixture", marks=pytest.mark.slow)]
)
def test_slopes_of_the_loss(models, name):
    """Slopes are finite with 0 and with N choices, and zero at padding."""
    model = models(name)

    @jax.jit
    def slopes(params, features, episode):
        def loss(params, features):
            chosen = episode.target.chosen._replace(features=features)
            own = episode._replace(target=episode.target._replace(chosen=chosen))
            variables = {**model.variables, "params": params}
            return episode_loss(model.module, variables, own, jax.random.key(0))[0]

        return jax.grad(loss, argnums=(0, 1))(params, features)

    for real in (np.zeros(N, bool), np.ones(N, bool)):
        episode = some_episode(3, real, some_masks(3)[1])
        found = slopes(
            model.variables["params"], episode.target.chosen.features, episode
        )
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
        moves = abs(found[1]).max(-1) > 0
        np.testing.assert_array_equal(moves, episode.target.mask)
        # Whatever is known, the prior learns.
        assert abs(found[0]["prior"]["log_std"]).min() > 0


@pytest.mark.slow
def test_ratings_teach_thresholds_and_the_neutral_option(models):
    model = models("ratings")
    context = some_feedback(0)

    def loss(params):
        variables = {**model.variables, "params": params}
        episode = some_episode(0)._replace(context=context)
        return episode_loss(model.module, variables, episode, jax.random.key(0))[0]

    found = jax.jit(jax.grad(loss))(model.variables["params"])
    for name in ("gaps", "neutral"):
        assert np.isfinite(found[name]).all() and abs(found[name]).min() > 0


@pytest.mark.slow
def test_episode_loss_is_that_of_the_predictions(models):
    model, episode = models("mixture"), some_episode(1, *some_masks(1))
    loss, metrics = jax.jit(functools.partial(episode_loss, model.module))(
        model.variables, episode, jax.random.key(0)
    )
    log_probs = np.float64(model.call(episode))[episode.target.mask]
    close(loss, -log_probs.sum() / M)
    close(metrics["nll"], -log_probs.mean())
    close(metrics["accuracy"], (log_probs > np.log(0.5)).mean())


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["predictive", "evidence"])
def test_steps_that_are_too_few_are_told(models, objective):
    model, episode = models("mixture"), some_episode(1, *some_masks(1))
    for num_steps in (0, 30):
        module = model.module.clone(num_steps=num_steps)
        loss = functools.partial(episode_loss, module, objective=objective)
        _, metrics = jax.jit(loss)(model.variables, episode, jax.random.key(0))
        assert metrics["converged"] == (num_steps == 30)


@pytest.mark.parametrize(
    "name", ["mixture", pytest.param("votes", marks=pytest.mark.slow)]
)
def test_evidence_is_that_of_all_choices_together(models, name):
    """Per observation: a choice of the context may be taken as two votes."""
    model, episode = models(name), some_episode(1, *some_masks(1))
    loss_of = functools.partial(episode_loss, model.module, objective="evidence")
    loss, metrics = jax.jit(loss_of)(model.variables, episode, jax.random.key(0))
    convert = episodes.as_votes if name == "votes" else episodes.as_feedback
    target = episodes.as_feedback(episode.target)
    told = episodes.concatenate(convert(episode.context), target)
    q = model.encode(told)
    close(loss, -q.log_evidence / len(told.mask))
    close(metrics["nll"], -q.log_evidence / told.mask.sum())


@pytest.mark.slow
def test_dropout_is_for_training_alone():
    module = LinearRewardModel(hidden=H, latent_dim=D, dropout=0.5, num_sweeps=0)
    episode = some_episode(0)
    variables = jax.jit(module.init)(jax.random.key(0), episode)
    loss = jax.jit(lambda key: episode_loss(module, variables, episode, key)[0])
    assert loss(jax.random.key(0)) == loss(jax.random.key(0))
    assert loss(jax.random.key(0)) != loss(jax.random.key(1))
    without = LinearRewardModel(hidden=H, latent_dim=D, num_sweeps=0)
    used = [jax.jit(m.apply)(variables, episode) for m in (module, without)]
    close(*used)


@pytest.mark.slow
def test_learns_two_types_in_a_few_seconds():
    """At least 85% of the choices after five, where who ignores people gets 75%."""
    sizes = dict(batch_size=32, max_context=6, num_targets=8, test_context=5)
    task = TwoTypes(**sizes, test_targets=20, num_users={VALID: 1, TEST: 200})
    options = dict(num_components=C, num_steps=6, num_sweeps=0)
    module = LinearRewardModel(hidden=16, latent_dim=D, **options)
    variables = reward_loss.init_variables(module, task, jax.random.key(0))
    statistics, params = variables["statistics"], variables["params"]
    options = dict(objective="predictive", num_samples=1, beta=1.0)
    loss_fn = reward_loss.make_loss(module, task, **options)
    optimizer = optax.adam(1e-2)
    examples = reward_loss.make_examples(task, 0, np.arange(32, dtype=np.int32))

    @jax.jit
    def train(params):
        def step(carry, number):
            params, state = carry
            batch = (), examples._replace(step=jnp.full(32, number))
            grads = jax.grad(
                lambda p: loss_fn(
                    {"params": p, "statistics": statistics}, batch, jax.random.key(1)
                )[0]
            )(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        start = params, optimizer.init(params)
        return jax.lax.scan(step, start, jnp.arange(150))[0][0]

    predict = FewShotPredictor(
        module,
        task,
        TEST,
        num_context=(0, 5),
        episodes_per_user=1,
        num_samples=8,
        deterministic=False,
        key=jax.random.key(0),
    )
    found = predict({"params": train(params), "statistics": statistics})
    right = (found.log_prob > np.log(0.5)).mean((0, 1, 3))
    assert right[0] < 0.8 and right[1] > 0.85
    # KL is that of z as a whole, as its dimensions depend on one another.
    assert found.latent_kl.shape == (200, 1, 2, 1)
    assert found.latent_mean.shape == (200, 1, 2, D)
    close(found.latent_kl[:, :, 0], np.zeros((200, 1, 1)), atol=1e-4)
    assert found.latent_kl[:, :, 1].mean() > 0.1


def test_unknown_contexts():
    for wrong in (dict(context="likes"), dict(context="ratings", levels=(1.0,))):
        module = LinearRewardModel(**wrong)
        with pytest.raises(ValueError, match=next(reversed(wrong))):
            jax.eval_shape(module.init, jax.random.key(0), some_episode(0))


def test_made_from_the_arguments_that_a_checkpoint_has():
    arguments = {"conditioning": "linear", "context": "ratings", "levels": [1, 2, 3.5]}
    made = reward_models.make(arguments)
    assert made == LinearRewardModel(context="ratings", levels=(1, 2, 3.5))
    hash(made)
