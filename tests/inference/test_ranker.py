"""Rankings of options for a new person."""

import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import pickle
import unicodedata

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from random_models import options_of, random_ranker
from scipy import special, stats
from slow import slow_but

from fsa import latent
from fsa.data import dataset
from fsa.data.collect import collect
from fsa.data.tables import Choice
from fsa.episodes import Choices
from fsa.errors import InputError
from fsa.inference import ranker as ranker_module
from fsa.inference import saved_model
from fsa.inference.option_lookup import BadOption
from fsa.inference.ranker import Ranker
from fsa.inference.ranking import Ranking
from fsa.models.reward import CONDITIONINGS, RewardModel
from fsa.training.checkpoint import VARIABLES, Checkpoints

pytestmark = pytest.mark.usefixtures("quick_compile")

F, D, K, ITEMS = 3, 2, 7, 5


def made(deterministic=False, **kwargs):
    """A ranker whose parameters are random and large enough to matter."""
    model = RewardModel(hidden=8, **{"latent_dim": D, **kwargs})
    ranker = random_ranker(model, F, K, deterministic=deterministic)
    # z near the origin and as uncertain as it may be, so that samples differ.
    if model.latent_dim:
        last = ranker.variables["params"]["context"]["MLP_1"]["Dense_2"]
        last["kernel"] *= 0.1
        last["bias"][model.latent_dim :] += 5
    return ranker


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


@pytest.mark.parametrize("conditioning", slow_but(("concatenated",), CONDITIONINGS))
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
    dataset.write(
        path,
        dataclasses.replace(
            data, features=vectors, embedding=dataset.Embedding("some")
        ),
    )
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


class Embedder:
    """A function that knows the vectors of some texts, and notes what it is asked."""

    def __init__(self, vectors):
        self.vectors, self.asked = vectors, []

    def __call__(self, texts):
        self.asked += texts
        return [self.vectors[text] for text in texts]


def test_an_embedder_finds_the_features_of_other_texts(stored, person):
    """It is recognised by stored texts, once, and then asked for new ones, once."""
    path, vectors = stored
    known = {f"text {i}": vector for i, vector in enumerate(vectors)}
    texts = [f"new {i}" for i in range(5)]
    new = dict(zip(texts, person["options"], strict=True))
    embedder = Embedder(known | new)
    ranker = dataclasses.replace(made(), data_path=str(path), embedder=embedder)
    people = dict(chosen=["id0"], rejected=["id2"])
    found = ranker.rank([*texts, "text 1"], **people)
    wanted = ranker.rank([*person["options"], vectors[1]], **people)
    np.testing.assert_array_equal(found.probability, wanted.probability)
    compared = [text for text in embedder.asked if text in known]
    assert len(compared) == ITEMS
    ranker.rank([*texts, "text 1"], **people)
    assert embedder.asked == [*compared, *texts]


def test_another_embedder_is_refused(stored, person):
    """A function, by the vectors that it gives for stored texts."""
    path, vectors = stored
    known = {f"text {i}": vector + 0.1 for i, vector in enumerate(vectors)}
    embedder = Embedder(known | {"new": person["options"][0]})
    ranker = dataclasses.replace(made(), data_path=str(path), embedder=embedder)
    with pytest.raises(InputError, match="`embedder`"):
        ranker.rank(["new", "id1"])


@pytest.mark.parametrize(
    "change",
    [
        # Only some of the items differ, which come late.
        lambda vectors: np.where(np.arange(200)[:, None] < 150, vectors, -vectors),
        # The vectors are far smaller than 1, and all others.
        lambda vectors: vectors[::-1],
    ],
)
def test_another_embedder_is_told_by_items_of_the_whole_dataset(
    tmp_path, person, change
):
    rows = [
        Choice("ann", "", f"{i}", f"{i + 1}", "train", "", f"id{i:03}", f"id{i + 1:03}")
        for i in range(199)
    ]
    vectors = 1e-4 * np.random.default_rng(5).normal(size=(200, F)).astype(np.float32)
    data = dataclasses.replace(
        collect(rows, []), features=vectors, embedding=dataset.Embedding("some")
    )
    dataset.write(tmp_path / "data", data)
    new = {"new": person["options"][0]}

    def rank(vectors):
        embedder = Embedder(dict(zip(map(str, range(200)), vectors, strict=True)) | new)
        ranker = dataclasses.replace(
            made(), data_path=str(tmp_path / "data"), embedder=embedder
        )
        ranker.rank(["new", "id001"])
        return embedder.asked

    # The last digits depend on the machine.
    assert 10 < len(rank(vectors * (1 + 1e-6))) < 50
    with pytest.raises(InputError, match="`embedder`"):
        rank(change(vectors))


def test_what_an_embedder_raises_is_not_renamed(stored):
    path, _ = stored

    def embedder(texts):
        raise ValueError("no network")

    ranker = dataclasses.replace(made(), data_path=str(path), embedder=embedder)
    with pytest.raises(ValueError, match="^no network$"):
        ranker.rank(["new", "id1"])


PROMPTS, ANSWERS = ("Something to drink?", "And to eat?"), ("yes", "no", "tea")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """A dataset of two prompts with the same answers, but one; and its vectors."""
    path = tmp_path_factory.mktemp("answers") / "data"
    rows = [Choice("ann", prompt, "yes", "no", "train") for prompt in PROMPTS] + [
        Choice("ann", PROMPTS[0], "tea", "no", "train")
    ]
    data = collect(rows, [])
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(len(data.texts), F)).astype(np.float32)
    by_pair = {
        (data.prompts[prompt], text): vector
        for prompt, text, vector in zip(
            data.item_prompt, data.texts, vectors, strict=True
        )
    }
    embedding = dataset.Embedding("some", template="{prompt} {option}")
    dataset.write(
        path, dataclasses.replace(data, features=vectors, embedding=embedding)
    )
    return path, by_pair


def test_a_text_is_known_by_its_prompt(answers):
    path, vectors = answers
    ranker = dataclasses.replace(made(), data_path=str(path))
    for prompt in PROMPTS:
        found = ranker.rank(["yes", "no"], prompt=prompt)
        each = ranker.rank(["yes", "no"], prompt=[prompt, prompt])
        pairs = ranker.rank([(prompt, "yes"), (prompt, "no")])
        wanted = ranker.rank([vectors[prompt, "yes"], vectors[prompt, "no"]])
        for ranking in (found, each, pairs):
            np.testing.assert_array_equal(ranking.probability, wanted.probability)
    with pytest.raises(BadOption, match="prompt"):
        ranker.rank(["tea", "yes"])
    # In choices too; a text of one prompt needs none.
    people = dict(chosen=[(PROMPTS[1], "yes")], rejected=["tea"])
    found = ranker.rank(["tea", (PROMPTS[0], "no")], **people)
    wanted = ranker.rank(
        [vectors[PROMPTS[0], "tea"], vectors[PROMPTS[0], "no"]],
        chosen=[vectors[PROMPTS[1], "yes"]],
        rejected=[vectors[PROMPTS[0], "tea"]],
    )
    np.testing.assert_array_equal(found.probability, wanted.probability)
    assert found.rows()[0]["option"] in ANSWERS
    with pytest.raises(BadOption) as caught:
        ranker.rank(["tea", (PROMPTS[0], "no")], chosen=["tea"], rejected=["yes"])
    assert (caught.value.argument, caught.value.number) == ("rejected", 0)


def test_new_texts_are_embedded_by_the_template_of_the_dataset(answers):
    path, vectors = answers
    embedder = Embedder(
        {f"{prompt} {text}": v for (prompt, text), v in vectors.items()}
    )
    embedder.vectors[f"{PROMPTS[1]} tea"] = new = [0.3, -0.2, 0.7]
    ranker = dataclasses.replace(made(), data_path=str(path), embedder=embedder)
    found = ranker.rank(["tea", "no"], prompt=PROMPTS[1])
    wanted = ranker.rank([new, vectors[PROMPTS[1], "no"]])
    np.testing.assert_array_equal(found.probability, wanted.probability)
    # The features of a new text depend on a prompt that nobody gave.
    with pytest.raises(BadOption, match="prompt"):
        ranker.rank(["rum", "tea"])


def test_a_text_that_is_the_id_of_another_item_needs_its_prompt(tmp_path):
    first, second = PROMPTS
    rows = [
        Choice("ann", first, "no", "yes", "train", "", "yes", "x"),
        Choice("ann", second, "tea", "rum", "train", "", "t", "r"),
    ]
    features = np.random.default_rng(6).normal(size=(4, F)).astype(np.float32)
    data = dataclasses.replace(
        collect(rows, []), features=features, embedding=dataset.Embedding("some")
    )
    dataset.write(tmp_path / "data", data)
    vectors = dict(zip(data.item_ids, features, strict=True))
    ranker = dataclasses.replace(made(), data_path=str(tmp_path / "data"))
    with pytest.raises(BadOption, match="'x' .*'yes'.*`prompt`"):
        ranker.rank(["yes", "t"])
    # With its prompt, it is the text; an id counts with the prompt of its item alone.
    found = ranker.rank([(first, "yes"), (second, "t")])
    wanted = ranker.rank([vectors["x"], vectors["t"]])
    np.testing.assert_array_equal(found.probability, wanted.probability)
    for option in [(second, "yes"), (first, "t")]:
        with pytest.raises(BadOption, match="prompt"):
            ranker.rank(["r", option])


def test_numbers_are_ids(tmp_path):
    rows = [Choice("ann", "", "one", "two", "train", "", "7", "8")]
    features = np.array([[1, 0, 0], [0, 2, 1]], np.float32)
    data = dataclasses.replace(
        collect(rows, []), features=features, embedding=dataset.Embedding("some")
    )
    dataset.write(tmp_path / "data", data)
    ranker = dataclasses.replace(made(), data_path=str(tmp_path / "data"))
    wanted = ranker.rank(["7", "8"], chosen=["8"], rejected=["7"])
    for seven, eight in [(7, 8), (7.0, np.int64(8)), ("7.0", np.float32(8))]:
        found = ranker.rank([seven, eight], chosen=[eight], rejected=[seven])
        np.testing.assert_array_equal(found.probability, wanted.probability)
    for other in (9, 7.5, float("nan")):
        with pytest.raises(BadOption):
            ranker.rank([7, other])


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


def test_options_that_are_wanted_alike_stay_in_order():
    probability = np.tile([0.5, 0.7], 20)
    order = Ranking(range(40), probability, np.zeros(40), 0).order
    assert order.tolist() == [*range(1, 40, 2), *range(0, 40, 2)]


def test_whole_numbers_may_be_large(ranker, person):
    found = ranker.posterior(chosen=[[10**30, 0, 0]], rejected=[[0, 2**70, 1]])
    wanted = ranker.posterior(chosen=[[1e30, 0, 0]], rejected=[[0, 2.0**70, 1]])
    np.testing.assert_array_equal(found.mean, wanted.mean)


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


def test_lines_of_the_plot_are_the_ranges_of_the_table():
    """Also where a range is cut at 0 or 100."""
    ranking = Ranking(["a", "b"], np.array([0.9, 0.1]), np.array([0.2, 0.05]), 1)
    (bars,) = (
        c for c in ranking.plot(Figure().subplots()).collections if c.get_segments()
    )
    lines = [[low, high] for (low, _), (high, _) in bars.get_segments()]
    np.testing.assert_allclose(lines, [[5, 15], [70, 100]])
    assert "[5.0, 15.0]" in str(ranking) and "[70.0, 100.0]" in str(ranking)


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


@pytest.mark.parametrize(
    "option",
    [
        None,
        {"a": 1.0},
        {},
        True,
        [1.0, 2.0],
        [[1.0], [2.0, 3.0], [4.0]],
        [[1.0, 2.0, 3.0]],
        [1.0, None, 2.0],
        ["1", "2", "3"],
        [1.0, float("nan"), 0.0],
        [1.0, float("inf"), 0.0],
        [1e39, 0.0, 0.0],
        [10**400, 0, 0],
        [1.0, 1j, 0.0],
        np.array([1, 2, 3], complex),
        [10**5000, 0, 0],
        10**5000,
        [0.0] * 100_000,
        "tea " * 100_000,
        (["no", "prompt"], "tea"),
        7,
        float("nan"),
        (),
        b"tea",
    ],
    ids=lambda option: type(option).__name__,
)
def test_an_option_that_cannot_be_used_is_named_in_a_short_line(ranker, person, option):
    options = [*person["options"], option]
    with pytest.raises(BadOption) as caught:
        ranker.rank(options)
    assert (caught.value.argument, caught.value.number) == ("options", 5)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    with pytest.raises(BadOption) as caught:
        ranker.rank(person["options"], chosen=[person["chosen"][0]], rejected=[option])
    assert (caught.value.argument, caught.value.number) == ("rejected", 0)


@pytest.mark.parametrize("likelihood", ["btl", "dpl"])
def test_features_beyond_what_the_model_computes_are_refused(person, likelihood):
    ranker = made(likelihood=likelihood)
    huge = np.full(F, 3e38, np.float32)
    with pytest.raises(BadOption) as caught:
        ranker.rank([person["options"][0], huge])
    assert (caught.value.argument, caught.value.number) == ("options", 1)
    choice = dict(chosen=[huge], rejected=[-huge])
    with pytest.raises(InputError, match="chosen"):
        ranker.rank(person["options"], **choice)
    with pytest.raises(InputError, match="chosen"):
        ranker.posterior(**choice)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"options": None}, "options"),
        ({"options": "tea"}, "options"),
        ({"options": 7}, "options"),
        ({"chosen": None}, "chosen"),
        ({"chosen": "tea", "rejected": "rum"}, "chosen"),
        ({"rejected": []}, "rejected"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"seed": "0"}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": 7}, "prompt"),
    ],
)
def test_arguments_that_do_not_fit(ranker, person, change, named):
    with pytest.raises(InputError, match=f"`{named}`") as error:
        ranker.rank(**{**person, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "likelihood", ["btl", pytest.param("dpl", marks=pytest.mark.slow)]
)
def test_many_options_in_parts(likelihood, monkeypatch):
    """Parts of 15 options, which divide nothing evenly, and of one z."""
    ranker = made(likelihood=likelihood)
    rng = np.random.default_rng(4)
    chosen, rejected = rng.normal(size=(2, 3, F)).astype(np.float32)
    options = rng.normal(size=(37, F)).astype(np.float32)
    many = dict(chosen=chosen, rejected=rejected, options=options)
    wins = by_hand(ranker, many)
    monkeypatch.setattr(ranker_module, "_ELEMENTS", 1000)
    ranking = ranker.rank(**many)
    np.testing.assert_allclose(ranking.probability, wins.mean(0), rtol=1e-4)
    np.testing.assert_allclose(ranking.std, wins.std(0), rtol=1e-3, atol=1e-6)


def test_memory_is_bounded():
    """2,000 options took 4 GB when all pairs were compared at once for every z."""
    size, samples = 2000, 256
    ranker = dataclasses.replace(made(), num_samples=samples)
    options = options_of(np.zeros((ranker_module._padded_options(size), F), np.float32))
    compiled = ranker_module._compare_all.lower(
        ranker.model,
        ranker.variables,
        latent.standard_normal(D),
        options,
        np.zeros(len(options.features), np.int32),
        np.int32(0),
        num_samples=samples,
        deterministic=False,
    ).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 200e6


def test_a_second_call_of_another_size_compiles_nothing(ranker, person):
    ranker.rank(**person)
    compiled = ranker_module._compare_all._cache_size()
    few = {key: value[:2] for key, value in person.items()}
    ranker.rank(**few)
    assert ranker_module._compare_all._cache_size() == compiled


def test_a_ranker_can_be_copied_and_pickled_after_use(stored, person):
    path, _ = stored
    ranker = dataclasses.replace(made(), data_path=str(path))
    wanted = ranker.rank(["id0", "id1"], chosen=["id2"], rejected=["id3"])
    for other in (copy.deepcopy(ranker), pickle.loads(pickle.dumps(ranker))):
        found = other.rank(["id0", "id1"], chosen=["id2"], rejected=["id3"])
        np.testing.assert_array_equal(found.probability, wanted.probability)


def test_options_are_ranked_within_their_prompts(stored):
    """As in rankings of each prompt alone; one alone with its prompt is named."""
    path, _ = stored
    ranker = dataclasses.replace(made(), data_path=str(path), embedder=None)
    rng = np.random.default_rng(3)
    vectors = list(rng.normal(size=(3, F)).astype(np.float32))
    items = ["id0", "id1"]
    names = [("", "text 0"), ("", "text 1")]
    mixed = [names[0], *vectors[:2], names[1], vectors[2]]
    told = dict(chosen=items[:1], rejected=items[1:])
    found = ranker.rank(mixed, within_prompts=True, **told)
    for places in ([0, 3], [1, 2, 4]):
        alone = ranker.rank([mixed[i] for i in places], **told)
        np.testing.assert_allclose(
            found.probability[places], alone.probability, rtol=1e-5
        )
        np.testing.assert_allclose(found.std[places], alone.std, rtol=1e-4, atol=1e-6)
    assert abs(found.probability - ranker.rank(mixed, **told).probability).max() > 1e-3
    with pytest.raises(BadOption, match="option 3: no other option"):
        ranker.rank([names[0], names[1], vectors[0]], within_prompts=True)
    assert ranker.unanswered(mixed, within_prompts=True) == [
        *[(0, 3), (1, 2), (1, 4), (2, 4)]
    ]


def test_pairs_that_are_not_answered_yet(ranker, person):
    options = person["options"]
    told = dict(chosen=options[[3, 0]], rejected=options[[1, 4]])
    found = ranker.unanswered([*options, options[0]], **told)
    every = set(itertools.combinations(range(6), 2))
    # Position 5 is option 0 again, which was compared with option 4.
    assert set(found) == every - {(1, 3), (0, 4), (4, 5), (0, 5)}


def test_posteriors_of_several_people(ranker, person):
    """Each as alone, whatever the numbers of their choices."""
    chosen, rejected = person["chosen"], person["rejected"]
    people = [(chosen[:n], rejected[:n]) for n in (3, 0, 1)]
    found = ranker.posteriors(people)
    assert found.mean.shape == (3, D)
    for i, (ours, theirs) in enumerate(people):
        wanted = ranker.posterior(chosen=ours, rejected=theirs)
        np.testing.assert_allclose(found.mean[i], wanted.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.log_std[i], wanted.log_std, rtol=1e-5)
    for bad in ([], None, [chosen, rejected], ["tea"], [([],)]):
        with pytest.raises(InputError, match="people"):
            ranker.posteriors(bad)


def test_the_table_is_narrow_whatever_the_texts():
    ranking = Ranking(["紅茶" * 60, "a\nb", "x" * 500], *np.ones((2, 3)) / 2, 0)
    lines = str(ranking).splitlines()
    assert len(lines) == 7
    for line in lines:
        wide = sum(unicodedata.east_asian_width(c) in "WF" for c in line)
        assert len(line) + wide <= 100


def test_ranges_stay_between_0_and_100():
    """Asymmetric where one standard deviation would leave them."""
    ranking = Ranking(["a", "b"], np.array([0.996, 0.4]), np.array([0.01, 0.05]), 1)
    first, second = str(ranking).splitlines()[-2:]
    assert "99.6  [98.6, 100.0]" in first and "40.0   [35.0, 45.0]" in second


def test_prompts_are_shown_where_they_differ():
    options = [("Drink?", "yes"), ("Eat?", "yes")]
    ranking = Ranking(options, np.array([0.2, 0.8]), np.zeros(2), 1)
    first, second = str(ranking).splitlines()[-2:]
    assert "Eat?" in first and "Drink?" in second
    assert [row["prompt"] for row in ranking.rows()] == ["Eat?", "Drink?"]
    assert "Eat?" not in str(Ranking(options[1:] * 2, np.ones(2), np.ones(2), 1))
