"""Rankings of options for a new person."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest
from scipy import special, stats

from fsa.episodes import Choices, Episode, Options
from fsa.errors import InputError
from fsa.inference import saved_model
from fsa.inference.predictor import Predictor
from fsa.models.reward import CONDITIONINGS, RewardModel
from fsa.training.checkpoint import VARIABLES, Checkpoints

pytestmark = pytest.mark.usefixtures("quick_compile")

F, D, K, ITEMS = 3, 2, 7, 5


def options_of(features, item=-1):
    return Options(features, np.full(len(features), item, np.int32))


def made(deterministic=False, **kwargs):
    """A predictor whose parameters are random and large enough to matter."""
    model = RewardModel(hidden=8, **{"latent_dim": D, **kwargs})
    none = options_of(np.zeros((1, F), np.float32))
    choices = Choices(none, none, np.ones(1, bool))
    episode = Episode(choices, choices, np.int32(0))
    shapes = jax.eval_shape(model.init, jax.random.key(0), episode)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.7, x.shape).astype(np.float32), shapes["params"]
    )
    # z near the origin and as uncertain as it may be, so that samples differ.
    if model.latent_dim:
        last = params["context"]["MLP_1"]["Dense_2"]
        last["kernel"] *= 0.1
        last["bias"][model.latent_dim :] += 5
    statistics = {"mean": np.zeros(F, np.float32), "std": np.ones(F, np.float32)}
    variables = {"params": params, "statistics": {"options": statistics}}
    return Predictor(model, variables, deterministic, num_samples=K)


@pytest.fixture(scope="module")
def person():
    """Three choices and five options."""
    rng = np.random.default_rng(1)
    chosen, rejected = rng.normal(size=(2, 3, F)).astype(np.float32)
    return dict(
        chosen=chosen,
        rejected=rejected,
        options=rng.normal(size=(5, F)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def predictor():
    return made()


@pytest.fixture(scope="module")
def btl():
    return made(latent_dim=0, deterministic=True)


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(model, method, variables, *args):
    return model.apply(variables, *args, method=method)


def by_hand(predictor, person, seed=0):
    """[K, O] win rates from the unpadded context, one sample of z at a time."""
    model, variables = predictor.model, predictor.variables
    context = Choices(
        options_of(person["chosen"]),
        options_of(person["rejected"]),
        np.ones(len(person["chosen"]), bool),
    )
    q = apply(model, RewardModel.encode, variables, context)
    mean, log_std = map(np.asarray, q)
    noise = jax.random.normal(jax.random.key(seed), (K, model.latent_dim))
    found = []
    for z in mean + np.exp(log_std) * np.asarray(noise):
        z = mean if predictor.deterministic else z
        options = options_of(person["options"])
        m, s = apply(model, RewardModel.reward, variables, options, z)
        gap = np.float64(m)[:, None] - np.float64(m)
        if s is None:
            p = special.expit(gap)
        else:
            p = stats.norm.cdf(gap / np.hypot(np.float64(s)[:, None], np.float64(s)))
        np.fill_diagonal(p, np.nan)
        found.append(np.nanmean(p, axis=1))
    return np.array(found)


def test_probabilities_average_over_opponents_and_over_z(predictor, person):
    """The context of three is padded to four inside, which must not show."""
    ranking = predictor.rank(**person)
    wins = by_hand(predictor, person)
    np.testing.assert_allclose(ranking.probability, wins.mean(0), rtol=1e-4)
    np.testing.assert_allclose(ranking.std, wins.std(0), rtol=1e-3, atol=1e-6)
    assert ranking.std.max() > 1e-3


def test_dpl_probabilities(person):
    predictor = made(latent_dim=0, likelihood="dpl", deterministic=True)
    ranking = predictor.rank(**person)
    wins = by_hand(predictor, person)
    np.testing.assert_allclose(ranking.probability, wins.mean(0), rtol=1e-4)


def test_every_comparison_has_one_winner(predictor, person):
    """Each of O (O - 1) / 2 pairs hands out one, and an option has O - 1 opponents."""
    ranking = predictor.rank(**person)
    np.testing.assert_allclose(ranking.probability.sum(), 5 / 2, rtol=1e-5)
    assert sorted(ranking.order) == list(range(5))
    assert (np.diff(ranking.probability[ranking.order]) <= 0).all()


def test_order_is_that_of_the_rewards(btl, person):
    options = options_of(person["options"])
    z = np.zeros(0, np.float32)
    reward, _ = apply(btl.model, RewardModel.reward, btl.variables, options, z)
    ranking = btl.rank(**person)
    assert ranking.order.tolist() == np.argsort(-np.asarray(reward)).tolist()
    assert (np.diff(reward) != 0).all()
    # Nothing about the person is unknown to a model without z.
    assert not ranking.std.any()


def test_two_options_show_the_choice_probability(btl, person):
    options = person["options"][:2]
    ranking = btl.rank(**{**person, "options": options})
    z = np.zeros(0, np.float32)
    (first, second), _ = apply(
        btl.model, RewardModel.reward, btl.variables, options_of(options), z
    )
    expected = special.expit(np.float64(first) - np.float64(second))
    np.testing.assert_allclose(ranking.probability, [expected, 1 - expected], rtol=1e-5)


def test_order_of_choices_and_of_options_does_not_matter(predictor, person):
    ranking = predictor.rank(**person)
    shuffle, other = [2, 0, 1], [4, 2, 0, 1, 3]
    again = predictor.rank(
        chosen=person["chosen"][shuffle],
        rejected=person["rejected"][shuffle],
        options=person["options"][other],
    )
    np.testing.assert_allclose(
        again.probability, ranking.probability[other], rtol=1e-4, atol=1e-6
    )


def test_a_person_who_chose_nothing_yet(predictor, person):
    nothing = {**person, "chosen": [], "rejected": []}
    ranking = predictor.rank(**nothing)
    one_more = predictor.rank(**person)
    assert np.isfinite(ranking.probability).all()
    assert not np.allclose(ranking.probability, one_more.probability, atol=1e-3)
    empty = {
        **person,
        **{k: np.zeros((0, F), np.float32) for k in ("chosen", "rejected")},
    }
    np.testing.assert_allclose(
        ranking.probability, by_hand(predictor, empty).mean(0), rtol=1e-4
    )


def test_choices_steer_and_their_direction_matters(predictor, person):
    swapped = {**person, "chosen": person["rejected"], "rejected": person["chosen"]}
    ranking, other = predictor.rank(**person), predictor.rank(**swapped)
    assert np.abs(ranking.probability - other.probability).max() > 1e-3


def test_seed_of_the_samples(predictor, person):
    first, again, other = (predictor.rank(**person, seed=s) for s in (3, 3, 4))
    assert np.array_equal(first.probability, again.probability)
    assert not np.array_equal(first.probability, other.probability)
    np.testing.assert_allclose(
        other.probability, by_hand(predictor, person, seed=4).mean(0), rtol=1e-4
    )


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_loaded_as_it_was_saved(person, tmp_path, conditioning):
    predictor = made(conditioning=conditioning)
    arguments = dict(hidden=8, latent_dim=D, conditioning=conditioning)
    description = saved_model.describe_reward_model({}, arguments, deterministic=False)
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        items = {VARIABLES: predictor.variables}
        checkpoints.save(1, items, score=0.0, meta=description)
    loaded = dataclasses.replace(Predictor.load(tmp_path), num_samples=K)
    found, wanted = loaded.rank(**person), predictor.rank(**person)
    np.testing.assert_array_equal(found.probability, wanted.probability)
    assert wanted.std.max() > 1e-3


def test_known_items_count(with_items, person):
    predictor = with_items
    unknown = predictor.rank(**person).probability
    options, chosen = np.arange(5), np.array([0, 1, 2])
    for known in (dict(option_item=options), dict(chosen_item=chosen)):
        assert not np.allclose(predictor.rank(**person, **known).probability, unknown)
    # -1 is what is assumed.
    assert np.array_equal(
        predictor.rank(**person, option_item=[-1] * 5).probability, unknown
    )


def test_mean_rewards(predictor, person):
    """r averaged over the samples of z, whatever stands in masked choices."""
    model, variables = predictor.model, predictor.variables
    chosen, rejected = (options_of(person[k]) for k in ("chosen", "rejected"))
    options = options_of(person["options"])
    mask = np.array([True, False, True])
    found = jax.jit(predictor.mean_rewards)(Choices(chosen, rejected, mask), options)

    kept = jax.tree.map(lambda x: x[mask], (chosen, rejected))
    context = Choices(*kept, mask[mask])
    q = apply(model, RewardModel.encode, variables, context)
    mean, log_std = map(np.asarray, q)
    noise = np.asarray(jax.random.normal(jax.random.key(0), (K, D)))
    rewards = [
        np.asarray(apply(model, RewardModel.reward, variables, options, z)[0])
        for z in mean + np.exp(log_std) * noise
    ]
    np.testing.assert_allclose(found, np.mean(rewards, 0), rtol=1e-4, atol=1e-5)


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


# What is wrong: how, and what the message must name.
BAD = {
    "one choice less": (lambda p: {"chosen": p["chosen"][:2]}, "chosen"),
    "one option": (lambda p: {"options": p["options"][:1]}, "options"),
    "not a number": (
        lambda p: {"options": changed(p["options"], (1, 2), np.nan)},
        "options",
    ),
    "infinite": (
        lambda p: {"rejected": changed(p["rejected"], (0, 0), np.inf)},
        "rejected",
    ),
    "another width": (lambda p: {"rejected": np.zeros((3, F + 1))}, "rejected"),
    # As many numbers as six options of the right width have.
    "double width": (lambda p: {"options": np.zeros((3, 2 * F))}, "options"),
    "flat": (lambda p: {"options": p["options"].ravel()}, "options"),
    "one item less": (lambda p: {"option_item": [0, 1, 2, 3]}, "options"),
    "item out of range": (lambda p: {"option_item": [0, 1, 2, 3, ITEMS]}, "options"),
}


@pytest.fixture(scope="module")
def with_items():
    return made(num_items=ITEMS)


@pytest.mark.parametrize("what", BAD)
def test_bad_input(with_items, person, what):
    change, named = BAD[what]
    with pytest.raises(InputError, match=named) as error:
        with_items.rank(**{**person, **change(person)})
    assert "\n" not in str(error.value)
