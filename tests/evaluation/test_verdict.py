"""Verdicts: what follows from paired accuracies."""

import numpy as np
import pytest

from fsa.evaluation import verdict
from fsa.evaluation.verdict import LITTLE, UNKNOWN, YES, Comparison, Scores

U, SIZES, TRAINED = 60, (0, 3, 10), (20, 40, 80)


def scores(gain=0.0, own=0.0, noise=0.05, base=0.6, shifted=0.0, **changes):
    """Accuracies of people around `base`; `gain` over n = 0, `own` over others."""
    rng = np.random.default_rng(0)

    def people(*means):
        drawn = base + noise * rng.normal(size=(U, len(means)))
        return drawn - drawn.mean(0) + base + np.array(means)

    fields = dict(
        popularity=people(0)[:, 0],
        linear=people(0)[:, 0],
        shifted=people(0, shifted / 2, shifted),
        shifted_others=people(0, 0, 0),
        model=np.stack([people(0, gain / 2, gain * (s + 2) / 4) for s in range(3)]),
        model_others=people(0, 0, gain - own),
        nll=people(0, 0, -gain),
    )
    return Scores(**{**fields, **changes})


def answers(found):
    return verdict.answers(verdict.compare(found, SIZES))


@pytest.mark.parametrize(
    ("ends", "answer"),
    [
        ((0.01, 0.05), YES),
        ((0.001, 0.019), LITTLE),
        ((-0.03, 0.01), LITTLE),
        ((-0.05, -0.01), LITTLE),
        ((-0.01, 0.05), UNKNOWN),
        ((float("nan"), float("nan")), UNKNOWN),
    ],
)
def test_answer(ends, answer):
    assert Comparison(0.0, *ends).answer == answer


def test_compare():
    """Means and intervals of the differences between the columns that are meant."""
    some = scores(gain=0.12, own=0.08, shifted=0.03)
    found = verdict.compare(some, SIZES)
    last = some.model[2, :, 2]
    expected = {
        "choices": last - some.model[2, :, 0],
        "own": last - some.model_others[:, 2],
        "shifted choices": some.shifted[:, 2] - some.shifted[:, 0],
        "shifted own": some.shifted[:, 2] - some.shifted_others[:, 2],
        "shifted over model": some.shifted[:, 2] - last,
        "features": some.linear - some.popularity,
        "more people": last - some.model[1, :, 2],
        "more choices": last - some.model[2, :, 1],
    }
    for name, differences in expected.items():
        np.testing.assert_allclose(found[name].difference, differences.mean())
        # The interval of a mean of many is nearly that of a normal distribution.
        half = 1.96 * differences.std() / np.sqrt(U)
        ends = found[name].difference - half, found[name].difference + half
        np.testing.assert_allclose(found[name][1:], ends, atol=0.2 * half)


def test_the_best_baseline_is_compared():
    poor = np.full(U, 0.4)
    for field in ("popularity", "linear"):
        found = verdict.compare(scores(gain=0.1, **{field: poor}), SIZES)
        assert found["model over baseline"].difference == pytest.approx(0.1)
    # Where both are worse than a coin, the coin counts.
    both = scores(gain=0.1, popularity=poor, linear=poor)
    found = verdict.compare(both, SIZES)
    assert found["model over baseline"].difference == pytest.approx(0.7 - 0.5)
    assert found["features"].difference == pytest.approx(0.4 - 0.5)


def test_the_nll_falls_rises_or_cannot_be_told():
    """Three sentences, by the interval of the paired difference over people."""
    begins = set()
    for gain in (0.1, -0.1, 0.0):
        some = scores(gain=gain)
        fallen = verdict.fall(some)
        differences = some.nll[:, 2] - some.nll[:, 0]
        half = 1.96 * differences.std() / np.sqrt(U)
        assert fallen.difference == pytest.approx(differences.mean())
        assert fallen.high - fallen.low == pytest.approx(2 * half, rel=0.2)
        found = verdict.compare(some, SIZES)
        lines = verdict.sentences(some, SIZES, TRAINED, found, fallen)
        (line,) = (line for line in lines if "negative log-likelihood" in line)
        begins.add(line.partition(":")[0])
    assert len(begins) == 3


def test_people_differ_only_if_both_gains_are_sure():
    question = "model learns the person"
    assert answers(scores(gain=0.1, own=0.1))[question] == YES
    # Better than a badly predicted n = 0, but not because of the person.
    assert answers(scores(gain=0.1, own=0.0, noise=0.01))[question] == LITTLE
    # Somebody else's choices mislead, but one's own do not help.
    assert answers(scores(gain=0.0, own=0.1, noise=0.01))[question] == LITTLE
    assert answers(scores(gain=0.02, own=0.02, noise=0.2))[question] == UNKNOWN
    assert answers(scores(shifted=0.1))["linear model learns the person"] == YES


def test_more_people_and_choices():
    found = answers(scores(gain=0.4, own=0.4))
    assert found["more people"] == found["more choices"] == YES
    found = answers(scores(noise=0.01))
    assert found["more people"] == found["more choices"] == LITTLE
    only = scores(gain=0.4)
    only = only._replace(
        **{
            name: getattr(only, name)[..., [0, 2]]
            for name in ("model", "model_others", "shifted", "shifted_others")
        }
    )
    assert "more choices" not in verdict.answers(verdict.compare(only, (0, 10)))


CASES = {
    "works": scores(gain=0.1, own=0.1),
    "not over the baseline": scores(gain=0.1, own=0.1, linear=np.full(U, 0.8)),
    "linear alone": scores(shifted=0.1, noise=0.01),
    "nobody differs": scores(noise=0.01),
    "too few": scores(noise=0.3),
}


def test_a_better_simple_model_is_named_in_the_conclusion():
    for shifted, told in ((0.3, True), (0.05, False)):
        some = scores(gain=0.1, own=0.1, shifted=shifted)
        found = verdict.compare(some, SIZES)
        fallen = verdict.fall(some)
        last = verdict.sentences(some, SIZES, TRAINED, found, fallen)[-1]
        assert (str(found["shifted over model"]) in last) == told
        assert ("--steps" in last) == told


def test_sentences_give_the_numbers_and_conclude_differently():
    conclusions = set()
    for some in CASES.values():
        found = verdict.compare(some, SIZES)
        fallen = verdict.fall(some)
        lines = verdict.sentences(some, SIZES, TRAINED, found, fallen)
        shown = " ".join(lines)
        assert f"{fallen.difference:+.3f} [{fallen.low:+.3f}" in shown
        told = found.keys() - {"model over baseline", "shifted over model"}
        assert all(str(found[name]) in shown for name in told)
        conclusions.add(lines[-1].partition(":")[0])
    assert len(conclusions) >= 4
