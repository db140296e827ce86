"""Which question a ranker asks next."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from random_models import options_of, random_ranker
from scipy import special
from slow import slow_but

from fsa.errors import InputError
from fsa.inference import questions as questions_module
from fsa.latent import mixture
from fsa.models.linear_reward import LinearRewardModel
from fsa.models.reward import RewardModel

pytestmark = pytest.mark.usefixtures("quick_compile")

F, D, K = 3, 2, 400

MODELS = {
    "linear": LinearRewardModel(hidden=8, latent_dim=D, num_components=2),
    "concatenated": RewardModel(hidden=8, latent_dim=D),
    "modulated": RewardModel(hidden=8, latent_dim=D, conditioning="modulated"),
    "dpl": RewardModel(hidden=8, latent_dim=D, likelihood="dpl"),
}


@functools.cache
def made(name="linear", deterministic=False):
    """A ranker whose parameters are random."""
    return random_ranker(MODELS[name], F, K, deterministic=deterministic)


@pytest.fixture(scope="module")
def options():
    return np.random.default_rng(1).normal(size=(6, F)).astype(np.float32)


def rewards_of(ranker, options, z):
    """Rewards `[K, O]` and their deviations, or None."""
    items = options_of(options)

    def at(z):
        return ranker.model.apply(ranker.variables, items, z, method="reward")

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(at))(z))


def by_hand(ranker, options, z):
    """Gains and probabilities of all pairs, from samples of z."""
    mean, std = rewards_of(ranker, options, z)
    gains, probabilities = [], []
    for i, j in itertools.combinations(range(len(options)), 2):
        p = special.expit(mean[:, i] - mean[:, j])
        if std is not None:
            scale = np.hypot(std[:, i], std[:, j])
            p = special.ndtr((mean[:, i] - mean[:, j]) / scale)
        expected = special.entr(p.mean()) + special.entr(1 - p.mean())
        gains.append(expected - (special.entr(p) + special.entr(1 - p)).mean())
        probabilities.append(p.mean())
    return gains, probabilities


@pytest.mark.parametrize("name", slow_but(("linear", "concatenated"), MODELS))
def test_gains_and_probabilities(name, options):
    """Those of samples of z from the ranker's own posterior."""
    ranker = made(name)
    told = dict(chosen=options[:2] + 1, rejected=options[2:4])
    found = ranker.questions(options, **told)
    assert found.pairs.tolist() == [
        list(pair) for pair in itertools.combinations(range(6), 2)
    ]
    q = ranker.posterior(**told)
    noise = np.random.default_rng(2).normal(size=(20_000, D))
    if name == "linear":
        which = np.random.default_rng(3).random(len(noise)) > np.exp(q.log_weight[0])
        factor = np.linalg.inv(q.cholesky)[which.astype(int)]
        moved = np.einsum("kij,ki->kj", factor, noise)
        z = q.component_mean[which.astype(int)] + moved
    else:
        z = q.mean + np.exp(q.log_std) * noise
    gains, probabilities = by_hand(ranker, options, z.astype(np.float32))
    # K = 400 samples of the ranker; none where it is linear.
    atol = 0.01 if name == "linear" else 0.08
    np.testing.assert_allclose(found.gain, gains, atol=atol)
    np.testing.assert_allclose(found.probability, probabilities, atol=atol)
    chance = np.maximum(probabilities, 1 - np.array(probabilities)).mean()
    assert abs(found.expected_accuracy - chance) < atol


def test_the_most_telling_pair_is_asked_and_not_again(options):
    ranker = made()
    found = ranker.questions(options)
    first = ranker.next_question(options)
    assert first.gain == found.gain.max()
    assert [first.first, first.second] == found.pairs[found.gain.argmax()].tolist()
    pairs = set()
    told = {"chosen": [], "rejected": []}
    while question := ranker.next_question(options, **told):
        pair = (question.first, question.second)
        assert pair not in pairs
        pairs.add(pair)
        # Whichever of the two is chosen.
        told["chosen"].append(options[pair[len(pairs) % 2]])
        told["rejected"].append(options[pair[1 - len(pairs) % 2]])
    assert len(pairs) == 15


def test_pairs_that_are_left_out(options):
    ranker = made()
    pairs = list(itertools.combinations(range(6), 2))
    first = ranker.next_question(options)
    second = ranker.next_question(options, leave_out=[(first.second, first.first)])
    assert second[:2] != first[:2] and second.gain <= first.gain
    assert ranker.next_question(options, leave_out=pairs) is None
    assert ranker.next_question(options, leave_out=pairs[1:])[:2] == (0, 1)


@pytest.mark.slow
def test_what_answers_tell_about_the_best_option(options):
    """Of two options, the best is all that their order is."""
    ranker = dataclasses.replace(made(), num_samples=1000)
    pair = options[:2]
    told = dict(chosen=options[2:3] + 1, rejected=options[3:4])
    of_best, of_order = (
        ranker.questions(pair, about=about, **told).gain[0]
        for about in ("best", "order")
    )
    np.testing.assert_allclose(of_best, of_order, atol=1e-6)
    # By hand, from z of another seed: I(answer; which is better).
    q = ranker.posterior(**told)
    z = np.asarray(
        mixture.mean_or_samples(q, jax.random.key(9), 4000, deterministic=False)
    )
    mean, _ = rewards_of(ranker, pair, z)
    p, first = special.expit(mean[:, 0] - mean[:, 1]), mean[:, 0] > mean[:, 1]

    def entropy(p):
        return special.entr(p) + special.entr(1 - p)

    within = [entropy(p[side].mean()) * side.mean() for side in (first, ~first)]
    np.testing.assert_allclose(of_best, entropy(p.mean()) - sum(within), atol=0.02)
    # An answer tells no more about the best option than about z.
    for about in ("best", "order"):
        found = ranker.questions(options, about=about, **told).gain
        assert (found <= ranker.questions(options, **told).gain + 0.02).all()
        assert ranker.next_question(options, about=about, **told).gain == found.max()


def test_two_equal_options_are_no_question(options):
    assert made().next_question([options[0], options[0]]) is None


def test_of_equal_questions_the_first_pair_is_asked(options):
    """Each of two options twice, in which four pairs tell the same."""
    best = made().next_question(options)
    pair = [options[best.first], options[best.second]]
    question = made().next_question([*pair[::-1], *pair])
    assert question[:2] == (0, 1)


@pytest.mark.parametrize("name", ["linear", "concatenated"])
def test_blocks(name, options, monkeypatch):
    """Blocks of 4 pairs, which do not divide 15, give what one of 16 gives."""
    ranker = made(name)
    wanted = ranker.questions(options)
    monkeypatch.setattr(questions_module, "_BLOCK", 4)
    found = ranker.questions(options)
    np.testing.assert_allclose(found.gain, wanted.gain, atol=1e-5)
    np.testing.assert_allclose(found.probability, wanted.probability, atol=1e-5)


def test_what_is_expected_is_the_mean_over_the_answers(options):
    """Each as probable as was expected; only the accuracy rises."""
    ranker = made()
    told = dict(chosen=options[:1] + 1, rejected=options[1:2])
    before = ranker.questions(options, **told)
    best = before.best()
    place = before.pairs.tolist().index([best.first, best.second])
    first = before.probability[place]
    probability, accuracy = 0, 0
    for p, (i, j) in ((first, best[:2]), (1 - first, best[1::-1])):
        chosen = np.concatenate([told["chosen"], options[[i]]])
        rejected = np.concatenate([told["rejected"], options[[j]]])
        then = ranker.questions(options, chosen=chosen, rejected=rejected)
        probability = probability + p * then.probability
        accuracy += p * then.expected_accuracy
        assert then.answered[place]
    # Posteriors are approximate.
    np.testing.assert_allclose(probability, before.probability, atol=0.02)
    assert accuracy > before.expected_accuracy - 0.005


def test_texts_are_embedded_once(options):
    seen = []

    def embedder(texts):
        seen.extend(texts)
        return [options[int(text)] for text in texts]

    ranker = dataclasses.replace(made(), embedder=embedder)
    texts = ["0", "3", "5", "0"]
    first = ranker.questions(texts)
    second = ranker.questions(["5", "1", "0"], chosen=["3"], rejected=["1"])
    assert sorted(seen) == ["0", "1", "3", "5"]
    vectors = made().questions(options[[0, 3, 5, 0]])
    np.testing.assert_allclose(first.gain, vectors.gain, atol=1e-6)
    told = dict(chosen=options[[3]], rejected=options[[1]])
    vectors = made().questions(options[[5, 1, 0]], **told)
    np.testing.assert_allclose(second.gain, vectors.gain, atol=1e-6)


def test_what_cannot_be_asked(options):
    with pytest.raises(InputError, match="deterministic"):
        made("concatenated", deterministic=True).next_question(options)
    for bad, named in (
        ({"options": options[:1]}, "options"),
        ({"options": options, "seed": -1}, "seed"),
        ({"options": options, "chosen": options[:1]}, "chosen"),
        ({"options": options, "prompt": ["a"]}, "prompt"),
        ({"options": options, "about": "worst"}, "about"),
        ({"options": [options[0], np.full(F, 3e38, np.float32)]}, "options"),
    ):
        with pytest.raises(InputError, match=f"`{named}`"):
            made().next_question(**bad)
