"""Rankings of options for a new person."""

import contextlib
import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import special, stats

from fsa.data import dataset
from fsa.data.collect import collect
from fsa.data.tables import Choice
from fsa.episodes import Choices, Episode, Options
from fsa.errors import InputError
from fsa.inference import saved_model
from fsa.inference.ranker import Ranker
from fsa.models.reward import CONDITIONINGS, RewardModel
from fsa.training.checkpoint import VARIABLES, Checkpoints

pytestmark = pytest.mark.usefixtures("quick_compile")

F, D, K, ITEMS = 3, 2, 7, 5


def options_of(features, item=-1):
    return Options(features, np.full(len(features), item, np.int32))


def made(deterministic=False, **kwargs):
    """A ranker whose parameters are random and large enough to matter."""
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
    return Ranker(model, variables, deterministic, num_samples=K)


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
def ranker():
    return made()


@pytest.fixture(scope="module")
def btl():
    return made(latent_dim=0, deterministic=True)


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(model, method, variables, *args):
    return model.apply(variables, *args, method=method)


def by_hand(ranker, person, seed=0):
    """[K, O] win rates from the unpadded context, one sample of z at a time."""
    model, variables = ranker.model, ranker.variables
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
        z = mean if ranker.deterministic else z
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


def test_probabilities_average_over_opponents_and_over_z(ranker, person):
    """The context of three is padded to four inside, which must not show."""
    ranking = ranker.rank(**person)
    wins = by_hand(ranker, person)
    np.testing.assert_allclose(ranking.probability, wins.mean(0), rtol=1e-4)
    np.testing.assert_allclose(ranking.std, wins.std(0), rtol=1e-3, atol=1e-6)
    assert ranking.std.max() > 1e-3


def test_dpl_probabilities(person):
    ranker = made(latent_dim=0, likelihood="dpl", deterministic=True)
    ranking = ranker.rank(**person)
    wins = by_hand(ranker, person)
    np.testing.assert_allclose(ranking.probability, wins.mean(0), rtol=1e-4)


def test_every_comparison_has_one_winner(ranker, person):
    """Each of O (O - 1) / 2 pairs hands out one, and an option has O - 1 opponents."""
    ranking = ranker.rank(**person)
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


def test_order_of_choices_and_of_options_does_not_matter(ranker, person):
    ranking = ranker.rank(**person)
    shuffle, other = [2, 0, 1], [4, 2, 0, 1, 3]
    again = ranker.rank(
        chosen=person["chosen"][shuffle],
        rejected=person["rejected"][shuffle],
        options=person["options"][other],
    )
    np.testing.assert_allclose(
        again.probability, ranking.probability[other], rtol=1e-4, atol=1e-6
    )


def test_a_person_who_chose_nothing_yet(ranker, person):
    nothing = {**person, "chosen": [], "rejected": []}
    ranking = ranker.rank(**nothing)
    one_more = ranker.rank(**person)
    assert np.isfinite(ranking.probability).all()
    assert not np.allclose(ranking.probability, one_more.probability, atol=1e-3)
    empty = {
        **person,
        **{k: np.zeros((0, F), np.float32) for k in ("chosen", "rejected")},
    }
    np.testing.assert_allclose(
        ranking.probability, by_hand(ranker, empty).mean(0), rtol=1e-4
    )


def test_choices_steer_and_their_direction_matters(ranker, person):
    swapped = {**person, "chosen": person["rejected"], "rejected": person["chosen"]}
    ranking, other = ranker.rank(**person), ranker.rank(**swapped)
    assert np.abs(ranking.probability - other.probability).max() > 1e-3


def test_seed_of_the_samples(ranker, person):
    first, again, other = (ranker.rank(**person, seed=s) for s in (3, 3, 4))
    assert np.array_equal(first.probability, again.probability)
    assert not np.array_equal(first.probability, other.probability)
    np.testing.assert_allclose(
        other.probability, by_hand(ranker, person, seed=4).mean(0), rtol=1e-4
    )


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_loaded_as_it_was_saved(person, tmp_path, conditioning):
    ranker = made(conditioning=conditioning)
    arguments = dict(hidden=8, latent_dim=D, conditioning=conditioning)
    description = saved_model.describe_reward_model({}, arguments, deterministic=False)
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        items = {VARIABLES: ranker.variables}
        checkpoints.save(1, items, score=0.0, meta=description)
    loaded = dataclasses.replace(Ranker.load(tmp_path), num_samples=K)
    found, wanted = loaded.rank(**person), ranker.rank(**person)
    np.testing.assert_array_equal(found.probability, wanted.probability)
    assert wanted.std.max() > 1e-3


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A dataset of ITEMS texts with features, each chosen by one training user."""
    path = tmp_path_factory.mktemp("data") / "data"
    rows = [
        Choice(
            "ann", "", f"text {i}", f"text {i + 1}", "train", "", f"id{i}", f"id{i + 1}"
        )
        for i in range(ITEMS - 1)
    ]
    vectors = np.random.default_rng(2).normal(size=(ITEMS, F)).astype(np.float32)
    data = collect(rows, [])
    dataset.write(path, dataclasses.replace(data, features=vectors, embedder="some"))
    return path, vectors


def test_ids_texts_and_features_are_the_same_options(stored):
    """Each stands for one vector, so for one ranking, where items have no embedding."""
    path, vectors = stored
    ranker = dataclasses.replace(made(), data_path=str(path))
    by_vector = ranker.rank(vectors, chosen=[vectors[0]], rejected=[vectors[3]])
    names = ["text 0", "id1", "text 2", vectors[3].tolist(), "id4"]
    by_name = ranker.rank(names, chosen=["id0"], rejected=["text 3"])
    np.testing.assert_array_equal(by_name.probability, by_vector.probability)
    assert by_vector.std.max() > 1e-3


def test_an_embedder_finds_the_features_of_other_texts(stored, person):
    """It is asked once, for the texts that are no items."""
    path, vectors = stored
    asked = []

    def embedder(texts):
        asked.append(texts)
        return [json.loads(text) for text in texts]

    ranker = dataclasses.replace(made(), data_path=str(path), embedder=embedder)
    texts = [json.dumps(option.tolist()) for option in person["options"]]
    found = ranker.rank([*texts, "text 1"], chosen=["id0"], rejected=["id2"])
    wanted = ranker.rank(
        [*person["options"], vectors[1]], chosen=["id0"], rejected=["id2"]
    )
    np.testing.assert_array_equal(found.probability, wanted.probability)
    assert asked == [texts]


def test_known_items_have_an_embedding_of_their_own(stored):
    path, vectors = stored
    ranker = dataclasses.replace(made(num_items=ITEMS), data_path=str(path))
    by_id = ranker.rank([f"id{i}" for i in range(ITEMS)]).probability
    assert not np.allclose(by_id, ranker.rank(vectors).probability)


def test_posterior(ranker, person):
    """The mean and deviation of the context encoder, whatever it is padded to."""
    chosen, rejected = (person[name] for name in ("chosen", "rejected"))
    found = ranker.posterior(chosen=chosen, rejected=rejected)
    context = Choices(options_of(chosen), options_of(rejected), np.ones(3, bool))
    wanted = apply(ranker.model, RewardModel.encode, ranker.variables, context)
    for name in ("mean", "log_std"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-5
        )


def test_a_model_without_z_has_no_posterior(btl):
    with pytest.raises(InputError, match="latent_dim"):
        btl.posterior()


def test_a_dict_of_options_is_ranked_by_its_keys(stored):
    path, _ = stored
    ranker = dataclasses.replace(made(), data_path=str(path))
    named = ranker.rank({"id0": 1, "id1": 2}, chosen=["id2"], rejected=["id3"])
    listed = ranker.rank(["id0", "id1"], chosen=["id2"], rejected=["id3"])
    np.testing.assert_array_equal(named.probability, listed.probability)


def test_rows_and_table_are_in_order(ranker, person):
    ranking = ranker.rank(**{**person, "options": person["options"].tolist()})
    rows = ranking.rows()
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["option"] for row in rows] == [
        ranking.options[i] for i in ranking.order
    ]
    json.dumps(rows)
    shown = [line for line in str(ranking).splitlines() if line.startswith("[")]
    assert [json.loads(line[: line.index("]") + 1]) for line in shown] == [
        row["option"] for row in rows
    ]


def test_plot(ranker, person):
    """A bar for each option, the most wanted at the top, with one deviation."""
    ranking = ranker.rank(**person)
    axes = ranking.plot(Figure().subplots())
    widths = [bar.get_width() for bar in axes.patches]
    expected = 100 * ranking.probability[ranking.order][::-1]
    np.testing.assert_allclose(widths, expected, rtol=1e-6)
    (bars,) = (c for c in axes.collections if c.get_segments())
    spans = [segment[1][0] - segment[0][0] for segment in bars.get_segments()]
    np.testing.assert_allclose(spans, 200 * ranking.std[ranking.order][::-1], rtol=1e-4)


def test_mean_rewards(ranker, person):
    """r averaged over the samples of z, whatever stands in masked choices."""
    model, variables = ranker.model, ranker.variables
    chosen, rejected = (options_of(person[k]) for k in ("chosen", "rejected"))
    options = options_of(person["options"])
    mask = np.array([True, False, True])
    found = jax.jit(ranker.mean_rewards)(Choices(chosen, rejected, mask), options)

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
    "unknown text": (lambda p: {"options": [*p["options"], "a text"]}, "options"),
    "ragged": (lambda p: {"options": [[1.0], [[2.0], 3]]}, "options"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(ranker, person, what):
    change, named = BAD[what]
    with pytest.raises(InputError, match=named) as error:
        ranker.rank(**{**person, **change(person)})
    assert "\n" not in str(error.value)
