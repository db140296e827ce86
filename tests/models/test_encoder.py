"""Encoders: context sets in any order and of any size, known and unknown options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from fsa.episodes import Options
from fsa.models.encoder import MLP, ContextEncoder, OptionEncoder

pytestmark = pytest.mark.usefixtures("quick_compile")

H, D, N, F, ITEMS = 8, 3, 7, 5, 11
POOLINGS = ("mean", "attention")
PROPERTY = settings(max_examples=20, deadline=None, derandomize=True)
SEEDS = st.integers(0, 10_000)
MASKS = st.lists(st.booleans(), min_size=N, max_size=N).map(np.array)


def random_variables(module, *args, seed=0):
    """Random numbers in place of all variables: initial biases of 0 would hide much."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes
    )


def pairs(seed, size=N):
    """Embedded options (chosen [N, H], rejected [N, H])."""
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(2, size, H)).astype(np.float32))


class Encoder:
    """A context encoder with variables, compiled once for each number of choices."""

    def __init__(self, pooling, **kwargs):
        self.module = module = ContextEncoder(H, D, pooling, **kwargs)
        self.variables = random_variables(module, *pairs(0), np.ones(N, bool))
        self.params = self.variables["params"]
        self.kappa = np.log1p(np.exp(float(self.params["kappa"])))
        apply = jax.jit(module.apply)
        self.apply = lambda *args: jax.tree.map(np.asarray, apply(*args))

    def __call__(self, chosen, rejected, mask):
        return self.apply(self.variables, chosen, rejected, mask)


@pytest.fixture(scope="module")
def encoders():
    return {name: Encoder(name) for name in POOLINGS}


def assert_equal(found, expected):
    for got, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, exact, rtol=2e-5, atol=2e-5)


def mlp(params, x):
    """Dense layers with the tanh form of GELU between them, in float64."""
    for i in range(len(params)):
        layer = params[f"Dense_{i}"]
        x = x @ np.float64(layer["kernel"]) + np.float64(layer["bias"])
        if i < len(params) - 1:
            x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x


def posterior(encoder, pooled, count):
    """(mean, log_std) from the pooled choices, in float64."""
    mean, raw = np.split(mlp(encoder.params["MLP_1"], pooled), 2)
    std = 0.01 + 0.99 * special.expit(raw - 2)
    shrunk = std * np.sqrt(encoder.kappa / (encoder.kappa + count))
    return mean, np.log(shrunk)


def pool_by_mean(encoder, chosen, rejected):
    """The prior token counts as kappa choices, in float64."""
    choices = mlp(encoder.params["MLP_0"], np.concatenate([chosen, rejected], axis=1))
    token = np.float64(encoder.params["prior"])
    return (encoder.kappa * token + choices.sum(0)) / (encoder.kappa + len(choices))


def pool_by_attention(encoder, chosen, rejected):
    """Softmax attention of one query to the choices and the prior token, in float64."""
    choices = mlp(encoder.params["MLP_0"], np.concatenate([chosen, rejected], axis=1))
    token = np.float64(encoder.params["prior"])
    values = np.concatenate([token[None], choices])
    (attention,) = (v for k, v in encoder.params.items() if "Attention" in k)

    def project(name, x):  # [n, H] -> [n, heads, H / heads]
        layer = attention[name]
        return np.einsum("nh,had->nad", x, np.float64(layer["kernel"])) + layer["bias"]

    query = project("query", np.float64(encoder.params["query"]))[0]
    keys, contents = project("key", values), project("value", values)
    logits = np.einsum("ad,nad->an", query, keys) / np.sqrt(query.shape[-1])
    mixed = np.einsum("an,nad->ad", special.softmax(logits, axis=1), contents)
    out = attention["out"]
    return np.einsum("ad,adh->h", mixed, np.float64(out["kernel"])) + out["bias"]


POOL = {"mean": pool_by_mean, "attention": pool_by_attention}


@pytest.mark.parametrize("pooling", POOLINGS)
@PROPERTY
@given(seed=SEEDS, mask=MASKS)
def test_posterior_equals_float64_numpy(encoders, pooling, seed, mask):
    encoder = encoders[pooling]
    chosen, rejected = pairs(seed)
    pooled = POOL[pooling](encoder, chosen[mask], rejected[mask])
    expected = posterior(encoder, pooled, mask.sum())
    assert_equal(encoder(chosen, rejected, mask), expected)


@pytest.mark.parametrize("pooling", POOLINGS)
@PROPERTY
@given(seed=SEEDS, mask=MASKS, order=st.permutations(range(N)))
def test_order_of_choices_does_not_matter(encoders, pooling, seed, mask, order):
    encoder = encoders[pooling]
    chosen, rejected = pairs(seed)
    order = list(order)
    shuffled = encoder(chosen[order], rejected[order], mask[order])
    assert_equal(shuffled, encoder(chosen, rejected, mask))


@pytest.mark.parametrize("pooling", POOLINGS)
@PROPERTY
@given(seed=SEEDS, count=st.sampled_from([0, 1, 3]), order=st.permutations(range(N)))
def test_masking_equals_removal(encoders, pooling, seed, count, order):
    encoder = encoders[pooling]
    mask = np.isin(range(N), order[:count])
    chosen, rejected = pairs(seed)
    # The values in the padding, however large, have no effect.
    loud = [np.where(mask[:, None], x, np.float32(1e4)) for x in (chosen, rejected)]
    alone = encoder(chosen[mask], rejected[mask], np.ones(count, bool))
    assert_equal(encoder(*loud, mask), alone)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_empty_context_gives_the_learned_prior(encoders, pooling):
    encoder = encoders[pooling]
    empty = np.zeros(N, bool)
    q = encoder(*pairs(0), empty)
    assert_equal(encoder(*pairs(1), empty), q)
    # The prior is learned: it depends on the token, and it is not N(0, I).
    other = jax.tree.map(np.array, encoder.variables)
    other["params"]["prior"] += 1
    assert not np.allclose(encoder.apply(other, *pairs(0), empty).mean, q.mean)
    assert not np.allclose(q.mean, 0, atol=0.01)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_standard_prior_is_for_empty_contexts_alone(encoders, pooling):
    learned, standard = encoders[pooling], Encoder(pooling, standard_prior=True)
    q = standard(*pairs(0), np.zeros(N, bool))
    assert not q.mean.any() and not q.log_std.any()
    one = np.arange(N) == 3
    assert_equal(
        standard.apply(learned.variables, *pairs(0), one), learned(*pairs(0), one)
    )


@pytest.mark.parametrize("pooling", POOLINGS)
def test_which_option_was_chosen_matters(encoders, pooling):
    chosen, rejected = pairs(0)
    encoder, mask = encoders[pooling], np.ones(N, bool)
    q, swapped = encoder(chosen, rejected, mask), encoder(rejected, chosen, mask)
    assert np.abs(q.mean - swapped.mean).max() > 0.01


@pytest.mark.parametrize("pooling", POOLINGS)
def test_sets_far_larger_than_trained_on(encoders, pooling):
    """As choices are repeated, the mean converges and the std goes on shrinking."""
    encoder = encoders[pooling]
    posteriors = {}
    for copies in (1, 100, 3000):
        context = [np.tile(x, (copies, 1)) for x in pairs(0)]
        q = posteriors[copies] = encoder(*context, np.ones(copies * N, bool))
        assert np.isfinite(q.mean).all() and np.isfinite(q.log_std).all()
        # The largest std, which is 1 at n = 0, multiplied by the factor of n choices.
        bound = -0.5 * np.log1p(copies * N / encoder.kappa)
        assert (q.log_std <= bound + 1e-5).all()
    # Between the two, the number of choices grows thirtyfold.
    fall = posteriors[3000].log_std - posteriors[100].log_std
    np.testing.assert_allclose(fall, -0.5 * np.log(30), atol=0.05)
    np.testing.assert_allclose(posteriors[3000].mean, posteriors[100].mean, atol=0.05)
    # The limit is the mean without the prior's share.
    limit = encoder_without_prior(encoder, pooling)
    np.testing.assert_allclose(posteriors[3000].mean, limit, atol=0.01)


def encoder_without_prior(encoder, pooling):
    """The mean that many copies of the same choices converge to."""
    chosen, rejected = (np.tile(x, (10_000, 1)) for x in pairs(0))
    return posterior(encoder, POOL[pooling](encoder, chosen, rejected), 0)[0]


def test_posterior_scale_is_bounded(encoders):
    """At n = 0 the std is between 0.01 and 1, whatever the network's output."""
    encoder = encoders["mean"]
    for sign in (-1, 1):
        loud = jax.tree.map(np.array, encoder.variables)
        loud["params"]["MLP_1"]["Dense_2"]["bias"][:] = sign * 1e4
        q = encoder.apply(loud, *pairs(0), np.zeros(N, bool))
        expected = np.log([0.01, 1.0][sign > 0])
        np.testing.assert_allclose(q.log_std, expected, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_users_under_vmap_equal_a_loop(encoders, pooling):
    encoder = encoders[pooling]
    masks = np.random.default_rng(0).random((5, N)) < 0.5
    users = [pairs(seed) for seed in range(5)]
    stacked = [np.stack(x) for x in zip(*users, strict=True)]
    mapped = jax.jit(jax.vmap(encoder.module.apply, in_axes=(None, 0, 0, 0)))
    found = mapped(encoder.variables, *stacked, masks)
    for u, (user, mask) in enumerate(zip(users, masks, strict=True)):
        assert_equal([x[u] for x in found], encoder(*user, mask))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_of_an_empty_context_are_finite(encoders, pooling):
    encoder = encoders[pooling]

    @jax.jit
    @jax.grad
    def slopes(variables):
        q = encoder.module.apply(variables, *pairs(0), jnp.zeros(N, bool))
        return q.mean.sum() + q.log_std.sum()

    found = slopes(encoder.variables)["params"]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    assert np.abs(found["prior"]).max() > 1e-3


def test_unknown_pooling():
    with pytest.raises(ValueError, match="pooling"):
        random_variables(ContextEncoder(H, D, "max"), *pairs(0), np.ones(N, bool))


def test_mlp():
    module = MLP([7, 3])
    x = np.random.default_rng(0).normal(size=(2, F)).astype(np.float32)
    variables = random_variables(module, x)
    expected = mlp(variables["params"], x)
    found = jax.jit(module.apply)(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def options(seed=0, size=N):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(size, F)).astype(np.float32)
    return Options(features, rng.integers(0, ITEMS, size).astype(np.int32))


class OptionEncoders:
    """One set of variables for modules that differ in their settings."""

    def __init__(self):
        self.modules = {
            "plain": OptionEncoder(H),
            "known": OptionEncoder(H, ITEMS),
            "always": OptionEncoder(H, ITEMS, item_dropout=1.0),
            "half": OptionEncoder(H, ITEMS, item_dropout=0.5),
        }
        self.params = random_variables(self.modules["known"], options())["params"]
        self.apply = {
            name: jax.jit(module.apply, static_argnames="train")
            for name, module in self.modules.items()
        }

    def __call__(self, name, features, item, *, params=None, statistics=None, **kwargs):
        params = dict(self.params if params is None else params)
        if name == "plain":
            del params["item"]
        mean, std = statistics or (np.zeros(F), np.ones(F))
        variables = {"params": params, "statistics": {"mean": mean, "std": std}}
        return np.asarray(
            self.apply[name](variables, Options(features, item), **kwargs)
        )


@pytest.fixture(scope="module")
def option_encoders():
    return OptionEncoders()


def test_statistics_standardise_the_features(option_encoders):
    features, item = options()
    rng = np.random.default_rng(1)
    mean = rng.normal(0, 100, F).astype(np.float32)
    std = np.geomspace(1e-3, 1e3, F).astype(np.float32)
    raw = option_encoders("plain", features * std + mean, item, statistics=(mean, std))
    # The raw features lose digits where the mean is large relative to the spread.
    np.testing.assert_allclose(raw, option_encoders("plain", features, item), atol=0.05)
    exact = (features * std + mean - mean) / std
    expected = option_encoders("plain", exact, item)
    np.testing.assert_allclose(raw, expected, rtol=1e-5, atol=1e-5)


def test_statistics_are_neutral_until_set_and_not_trained():
    variables = jax.jit(OptionEncoder(H).init)(jax.random.key(0), options())
    assert not variables["statistics"]["mean"].any()
    assert (variables["statistics"]["std"] == 1).all()
    assert set(variables["params"]) == {"Dense_0", "Dense_1"}


def test_unknown_items_are_described_by_their_features_alone(option_encoders):
    features, item = options()
    unknown = np.where(np.arange(N) % 2 == 0, -1, item).astype(np.int32)
    plain = option_encoders("plain", features, item)
    found = option_encoders("known", features, unknown)
    assert np.array_equal(found[::2], plain[::2])
    assert (np.abs(found - plain)[1::2].max(1) > 1e-3).all()


def test_items_have_an_embedding_of_their_own(option_encoders):
    """A change of one item's embedding changes the output for that item alone."""
    features = options()[0]
    item = np.array([0, 1, 2, 3, 4, -1, ITEMS - 1], np.int32)
    before = option_encoders("known", features, item)
    for changed in (0, 3, ITEMS - 1):
        params = jax.tree.map(np.array, option_encoders.params)
        params["item"]["embedding"][changed] += 1
        after = option_encoders("known", features, item, params=params)
        differs = np.abs(after - before).max(1) > 1e-4
        assert np.array_equal(differs, item == changed)


def test_item_dropout_makes_items_unknown_in_training(option_encoders):
    features, item = options()
    plain = option_encoders("plain", features, item)
    known = option_encoders("known", features, item)
    rngs = {"dropout": jax.random.key(0)}
    for train, expected in ((True, plain), (False, known)):
        found = option_encoders("always", features, item, train=train, rngs=rngs)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Without dropout, training needs no randomness and changes nothing.
    assert np.array_equal(option_encoders("known", features, item, train=True), known)


def test_item_dropout_is_of_the_share_asked_for(option_encoders):
    size = 2003
    features, item = np.zeros((size, F), np.float32), np.full(size, 3, np.int32)
    plain = option_encoders("plain", features[:1], item[:1])
    found = option_encoders(
        "half", features, item, train=True, rngs={"dropout": jax.random.key(0)}
    )
    share = np.isclose(found, plain, atol=1e-6).all(1).mean()
    assert abs(share - 0.5) < 5 * np.sqrt(0.25 / size)
