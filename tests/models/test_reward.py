"""Reward models: symmetries of any choice model, and each objective by hand."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import (
    ITEMS,
    F,
    M,
    N,
    random_params,
    some_episode,
    some_masks,
)
from scipy import special, stats
from slow import slow_but

from fsa import episodes
from fsa.episodes import Episode, Options
from fsa.models import reward
from fsa.models.reward import RewardModel, episode_loss
from fsa.models.reward_models import predict

pytestmark = pytest.mark.usefixtures("quick_compile")

H, D, K = 8, 2, 3
BETA = 0.3
PROPERTY = settings(max_examples=20, deadline=None, derandomize=True)
SEEDS = st.integers(0, 10_000)
# Between them every option of the model.
MODELS = {
    "BTL": dict(latent_dim=0),
    "DPL": dict(latent_dim=0, likelihood="dpl"),
    "NP-BTL": dict(latent_dim=D, num_items=ITEMS),
    "VPL": dict(latent_dim=D, standard_prior=True, pooling="attention"),
    "modulated": dict(latent_dim=D, likelihood="dpl", conditioning="modulated"),
}
NAMES = slow_but(("BTL", "DPL", "NP-BTL"), MODELS)
WITH_LATENT = ("NP-BTL", "VPL", "modulated")
WITH_LEARNED_PRIOR = ("NP-BTL", "modulated")
# (model, objective): those that belong together.
OBJECTIVES = [("NP-BTL", o) for o in ("deterministic", "ml", "elbo")]
OBJECTIVES += [("VPL", "vpl"), ("modulated", "ml")]
QUICK = ("NP-BTL", "ml"), ("NP-BTL", "elbo")
PAIRS = slow_but(QUICK, OBJECTIVES)


class Model:
    """A model with random variables, and all that it computes as one program."""

    def __init__(self, name):
        self.module = module = RewardModel(hidden=H, **MODELS[name])
        self.dim = module.latent_dim
        params = random_params(module, some_episode(0), seed=1)
        # The widest posterior that the encoder allows, so that samples differ.
        if self.dim:
            params["context"]["MLP_1"]["Dense_2"]["bias"][self.dim :] += 5
        statistics = {"mean": np.full(F, 0.1), "std": np.full(F, 0.9)}
        self.variables = {"params": params, "statistics": {"options": statistics}}

        @jax.jit
        def everything(variables, episode, z, key):
            def apply(method, *args):
                return module.apply(variables, *args, method=method)

            def predicted(deterministic):
                return predict(
                    module,
                    variables,
                    episode,
                    key,
                    num_samples=K,
                    deterministic=deterministic,
                )

            target = episode.target
            return {
                "q": apply(module.encode, episode.context),
                "log_prob": apply(module.log_prob, target, z),
                "chosen": apply(module.reward, target.chosen, z[0]),
                "predict": predicted(False),
                "deterministic": predicted(True),
            }

        self.everything = everything
        self.call = jax.jit(lambda episode: module.apply(self.variables, episode))
        self.encode = jax.jit(
            lambda context: module.apply(self.variables, context, method=module.encode)
        )

    def __call__(self, episode, z=None, seed=0, variables=None):
        z = self.samples(0) if z is None else z
        variables = self.variables if variables is None else variables
        out = self.everything(variables, episode, z, jax.random.key(seed))
        return jax.tree.map(np.float64, out)

    def samples(self, seed):
        rng = np.random.default_rng(seed)
        return rng.normal(size=(K, self.dim)).astype(np.float32)


def reverse(episode):
    """The episode with its targets reversed."""
    return episode._replace(target=episodes.reverse(episode.target))


@pytest.fixture(scope="module")
def models():
    return functools.cache(Model)


def likelihood(chosen, rejected):
    """By scipy, from (mean, std) of the two options."""
    (m, s), (n, t) = chosen, rejected
    if s is None:
        return special.log_expit(m - n)
    return stats.norm.logcdf((m - n) / np.hypot(s, t))


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(seed=SEEDS)
def test_the_two_orders_have_probabilities_that_add_to_one(models, name, seed):
    model, episode, z = models(name), some_episode(seed), models(name).samples(seed)
    log_probs = [model(e, z)["log_prob"] for e in (episode, reverse(episode))]
    np.testing.assert_allclose(np.exp(log_probs).sum(0), np.ones((K, M)), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(seed=SEEDS)
def test_log_prob_follows_the_rewards_sample_by_sample(models, name, seed):
    model, episode = models(name), some_episode(seed)
    z = model.samples(seed)
    together = model(episode, z)["log_prob"]
    for k in range(K):
        z_k = np.roll(z, -k, axis=0)
        chosen, rejected = (
            model(e, z_k)["chosen"] for e in (episode, reverse(episode))
        )
        expected = likelihood(chosen, rejected)
        # Rewards that are large relative to their difference lose digits.
        np.testing.assert_allclose(together[k], expected, rtol=1e-3, atol=1e-5)
    assert (np.ptp(together, axis=0) > 1e-4).any() == (name in WITH_LATENT)


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(seed=SEEDS, order=st.permutations(range(N)), targets=st.permutations(range(M)))
def test_order_of_the_sets_does_not_matter(models, name, seed, order, targets):
    model = models(name)
    episode = some_episode(seed, *some_masks(seed))
    order, targets = np.array(order), np.array(targets)
    shuffled = Episode(
        jax.tree.map(lambda x: x[order], episode.context),
        jax.tree.map(lambda x: x[targets], episode.target),
        episode.group,
    )
    found, expected = model(shuffled), model(episode)
    for got, exact in zip(found["q"], expected["q"], strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        found["predict"], expected["predict"][targets], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(("name", "count"), [("NP-BTL", 3), ("VPL", 0)])
def test_masking_a_context_equals_removal(models, name, count):
    model = models(name)
    mask = np.isin(range(N), np.random.default_rng(count).permutation(N)[:count])
    context = some_episode(5, mask).context
    kept = jax.tree.map(lambda x: x[mask], context)
    for got, exact in zip(model.encode(context), model.encode(kept), strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_context_gives_the_prior(models, name):
    model, nothing = models(name), np.zeros(N, bool)
    first = some_episode(0, nothing)
    second = first._replace(context=some_episode(1, nothing).context)
    found, same = model(first), model(second)
    np.testing.assert_allclose(found["predict"], same["predict"], rtol=1e-5)
    mean, log_std = found["q"]
    is_standard = not mean.any() and not log_std.any()
    assert is_standard == (name not in WITH_LEARNED_PRIOR)


@pytest.mark.parametrize("name", NAMES)
def test_only_models_with_a_latent_use_the_context(models, name):
    model, episode = models(name), some_episode(0)
    other = episode._replace(context=some_episode(1).context)
    found, changed = model(episode)["predict"], model(other)["predict"]
    assert np.array_equal(found, changed) == (name not in WITH_LATENT)
    assert model(episode)["q"].mean.shape == (model.dim,)


@pytest.mark.parametrize("name", NAMES)
def test_predictions_of_an_episode(models, name):
    """At the posterior mean, and as the average probability over samples from q."""
    model, episode = models(name), some_episode(2)
    found = model(episode, seed=5)
    mean, log_std = found["q"]
    at_mean = model(episode, np.tile(np.float32(mean), (K, 1)))["log_prob"][0]
    np.testing.assert_allclose(found["deterministic"], at_mean, rtol=1e-4, atol=1e-5)
    if name == "NP-BTL":
        chex.assert_trees_all_close(model.call(episode), np.float32(at_mean), rtol=1e-4)
    noise = jax.random.normal(jax.random.key(5), (K, model.dim))
    z = np.float32(mean + np.exp(log_std) * np.asarray(noise))
    expected = np.log(np.mean(np.exp(model(episode, z)["log_prob"]), axis=0))
    np.testing.assert_allclose(found["predict"], expected, rtol=1e-4, atol=1e-5)
    other = model(episode, seed=6)
    assert np.array_equal(other["deterministic"], found["deterministic"])
    same = np.allclose(other["predict"], found["predict"], rtol=1e-4)
    assert same == (name not in WITH_LATENT)


def test_dpl_has_a_positive_std_for_any_option(models):
    episode = some_episode(0)
    far = np.linspace(-1e6, 1e6, M * F, dtype=np.float32).reshape(M, F)
    chosen = Options(far, np.full(M, -1, np.int32))
    target = episode.target._replace(chosen=chosen)
    found = models("DPL")(episode._replace(target=target))
    mean, std = found["chosen"]
    assert np.isfinite(mean).all() and np.isfinite(found["log_prob"]).all()
    assert (std > 0).all()
    assert np.ptp(models("DPL")(episode)["chosen"][1]) > 0.01


def test_unknown_items_are_described_by_their_features(models):
    """With item -1 for every option, the embeddings of items have no effect."""
    model, episode = models("NP-BTL"), some_episode(0)
    unknown = jax.tree.map(
        lambda x: np.full_like(x, -1) if x.dtype == np.int32 else x, episode
    )
    params = dict(model.variables["params"])
    embedding = params["options"]["item"]["embedding"] + 7
    params["options"] = {**params["options"], "item": {"embedding": embedding}}
    other = {**model.variables, "params": params}
    for asked, equal in ((unknown, True), (episode, False)):
        found = model(asked)["predict"]
        changed = model(asked, variables=other)["predict"]
        assert np.array_equal(found, changed) == equal


@pytest.fixture(scope="module")
def losses_of_users(models):
    """((values, metrics), slopes) of the losses of users [U], for each objective."""

    @functools.cache
    def compiled(name, objective):
        module = models(name).module

        @jax.jit
        @functools.partial(jax.vmap, in_axes=(None, 0, 0))
        def of_users(variables, episode, key):
            def of(params, features):
                chosen = episode.target.chosen._replace(features=features)
                target = episode.target._replace(chosen=chosen)
                return episode_loss(
                    module,
                    {**variables, "params": params},
                    episode._replace(target=target),
                    key,
                    objective=objective,
                    num_samples=K,
                    beta=BETA,
                )

            return jax.value_and_grad(of, argnums=(0, 1), has_aux=True)(
                variables["params"], episode.target.chosen.features
            )

        return of_users

    def run(name, objective, users, keys, variables=None):
        stacked = jax.tree.map(lambda *x: np.stack(x), *users)
        variables = models(name).variables if variables is None else variables
        out = compiled(name, objective)(variables, stacked, keys)
        return jax.tree.map(np.asarray, out)

    return run


def some_users():
    """Five users, one of them with an empty context and one without targets."""
    users = [some_episode(seed, *some_masks(seed)) for seed in range(5)]
    users[1] = some_episode(1, np.zeros(N, bool), some_masks(1)[1])
    users[3] = some_episode(3, some_masks(3)[0], np.zeros(M, bool))
    return users


def by_hand(model, episode, key, objective):
    """(loss, metrics) computed in float64 from encode and log_prob."""
    prior = q = model(episode)["q"]
    if objective == "elbo":
        both = episodes.concatenate(episode.context, episode.target)
        q = model.encode(both)
    if objective == "vpl":
        prior = (np.zeros(D), np.zeros(D))
    (qm, qs), (pm, ps) = ((np.float64(m), np.exp(np.float64(s))) for m, s in (q, prior))
    kl = np.sum(np.log(ps / qs) + (qs**2 + (qm - pm) ** 2) / (2 * ps**2) - 0.5)
    noise = np.asarray(jax.random.normal(jax.random.split(key)[0], (K, D)))
    z = qm + qs * noise * (objective != "deterministic")
    log_probs = model(episode, np.float32(z))["log_prob"][:, episode.target.mask]
    joint = log_probs.sum(1)
    loss = {
        "deterministic": -joint[0],
        "ml": np.log(K) - special.logsumexp(joint),
        "elbo": -joint.mean() + BETA * kl,
        "vpl": -joint.mean() + BETA * kl,
    }[objective]
    predicted = np.exp(log_probs).mean(0)
    metrics = {"nll": -np.log(predicted).sum(), "accuracy": (predicted > 0.5).sum()}
    count = max(episode.target.mask.sum(), 1)
    metrics = {name: value / count for name, value in metrics.items()}
    if objective in ("elbo", "vpl"):
        metrics["kl"] = kl
    # Divided by M, so that users are weighted by their number of targets.
    return loss / M, metrics


@pytest.mark.parametrize("name, objective", PAIRS)
def test_episode_loss_by_hand(models, losses_of_users, name, objective):
    users = some_users()
    keys = jax.random.split(jax.random.key(0), len(users))
    (values, metrics), _ = losses_of_users(name, objective, users, keys)
    for u, (episode, key) in enumerate(zip(users, keys, strict=True)):
        expected, by_name = by_hand(models(name), episode, key, objective)
        np.testing.assert_allclose(values[u], expected, rtol=1e-4, atol=1e-5)
        assert set(metrics) == set(by_name)
        for metric, value in by_name.items():
            found = metrics[metric][u]
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)
    assert np.ptp(values) > 0.1


@pytest.mark.parametrize("name, objective", PAIRS)
def test_slopes_of_the_loss(losses_of_users, name, objective):
    """Slopes are finite for empty sets too, and zero at padding."""
    users = some_users()
    keys = jax.random.split(jax.random.key(0), len(users))
    _, (params, features) = losses_of_users(name, objective, users, keys)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, features)))
    mask = np.stack([user.target.mask for user in users])
    matters = np.abs(features).max(-1) > 0
    assert not matters[~mask].any()
    assert matters[mask].mean() > 0.9
    # The user with an empty context trains the learned prior.
    teaches = np.abs(params["context"]["prior"][1]).max() > 0
    assert teaches == (name in WITH_LEARNED_PRIOR)


def test_item_dropout_of_everything_hides_the_items(models):
    variables, episode = models("NP-BTL").variables, some_episode(0)
    module = RewardModel(hidden=H, item_dropout=1.0, **MODELS["NP-BTL"])
    loss = jax.jit(lambda *args: episode_loss(module, *args)[0])
    other = jax.tree.map(
        lambda x: (x + 1) % ITEMS if x.dtype == np.int32 else x, episode
    )
    found, same = (loss(variables, e, jax.random.key(0)) for e in (episode, other))
    assert found == same


@pytest.mark.slow
def test_a_modulated_model_starts_to_use_z(models, losses_of_users):
    """At initialisation rewards do not depend on z, so the encoder has no slope. The
    hypernetwork has one, and after one step the encoder has, too."""
    users, key = some_users(), jax.random.key(0)
    keys = jax.random.split(key, len(users))
    variables = jax.jit(models("modulated").module.init)(key, users[0])

    def slopes(params):
        new = {**variables, "params": params}
        _, (of_users, _) = losses_of_users("modulated", "ml", users, keys, new)
        return jax.tree.map(lambda x: x.mean(0), of_users)

    def largest(tree):
        return [np.abs(x).max() for x in jax.tree.leaves(tree)]

    params = variables["params"]
    first = slopes(params)
    assert max(largest(first["context"])) == 0
    hyper = dict(first["head"]["hypernet"]["leaves"])
    # A bias of the mean reward is the same for all options, so that it has no slope.
    last = hyper.pop("Dense_2")
    assert min(largest([hyper, last["kernel"]])) > 0
    second = slopes(jax.tree.map(lambda p, slope: p - 0.1 * slope, params, first))
    assert min(largest(second["context"])) > 0


def test_unknown_names(models):
    model, episode, key = models("NP-BTL"), some_episode(0), jax.random.key(0)

    def loss():
        return episode_loss(
            model.module, model.variables, episode, key, objective="map"
        )

    with pytest.raises(ValueError, match="objective"):
        jax.eval_shape(loss)
    names = dict(likelihood="probit", pooling="max", conditioning="film")
    for field, value in names.items():
        module = RewardModel(**{field: value})
        with pytest.raises(ValueError, match=field):
            jax.eval_shape(module.init, key, episode)


def test_all_objectives_are_covered_here():
    assert {objective for _, objective in OBJECTIVES} == set(reward.OBJECTIVES)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_each_model(name):
    """Initialisation creates the parameters of the parts that a model has, only."""
    module = RewardModel(hidden=H, **MODELS[name])
    shapes = jax.eval_shape(module.init, jax.random.key(0), some_episode(0))
    params = shapes["params"]
    assert ("context" in params) == (name in WITH_LATENT)
    modulated = name == "modulated"
    assert ("head_latent" in params) == (name in WITH_LATENT and not modulated)
    assert ("hypernet" in params["head"]) == modulated
    assert ("item" in params["options"]) == ("num_items" in MODELS[name])
    outputs = 2 if module.likelihood == "dpl" else 1
    head = params["head"]["module"] if modulated else params["head"]
    assert head[f"Dense_{len(head) - 1}"]["bias"].shape == (outputs,)
    assert jax.tree.map(jnp.shape, shapes["statistics"]) == {
        "options": {"mean": (F,), "std": (F,)}
    }
