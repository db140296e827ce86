"""Whether few-shot prediction will work on a dataset, in sentences, from paired scores.

Every comparison is of the same people on the same target choices, and every sentence
gives the numbers that it is derived from.

Shapes: U scored people, C context sizes from 0 to n, S numbers of training people.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fsa.evaluation.scores import bootstrap_interval

# Whether there is a gain of accuracy: surely, or surely less than `WORTH`.
YES, LITTLE, UNKNOWN = "yes", "little if anything", "cannot be told"
WORTH = 0.02


class Scores(NamedTuple):
    """The accuracy of each person's predictions, a share in [0, 1], and an NLL.

    Attributes:
      popularity: `[U]`, of the option that more training people like.
      linear: `[U]`, of one linear model of the features for everybody.
      shifted: `[U, C]`, of the linear model after a person's choices shifted it.
      shifted_others: `[U, C]`, the same with as many choices of somebody else.
      model: `[S, U, C]`, of the reward model, by the number of training people.
      model_others: `[U, C]`, of the last one with as many choices of somebody else.
      nll: `[U, C]`, the negative log-likelihood of the last one, in nats.
    """

    popularity: np.ndarray
    linear: np.ndarray
    shifted: np.ndarray
    shifted_others: np.ndarray
    model: np.ndarray
    model_others: np.ndarray
    nll: np.ndarray


class Comparison(NamedTuple):
    """A mean difference of accuracy over people, with its 95% bootstrap interval."""

    difference: float
    low: float
    high: float

    @property
    def answer(self) -> str:
        """YES, LITTLE or UNKNOWN, by the interval."""
        if self.high < WORTH:
            return LITTLE
        return YES if self.low > 0 else UNKNOWN

    def __str__(self) -> str:
        """Formats it in percentage points."""
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.difference:+.1f} points [{low:+.1f}, {high:+.1f}]"


def compare(
    scores: Scores, sizes: Sequence[int], num_resamples: int = 1000
) -> dict[str, Comparison]:
    """Compares what the questions are about, at the largest n and the most people.

    Args:
      scores: the accuracies.
      sizes: the C context sizes, of which the first is 0.
      num_resamples: see `bootstrap_interval`.

    Returns:
      name -> comparison; a gain is above 0. "more choices" is left out where there is
      no context size between 0 and n.
    """
    model = scores.model[-1]
    last, pairs = model[:, -1], {}
    pairs["choices"] = last, model[:, 0]
    pairs["own"] = last, scores.model_others[:, -1]
    pairs["shifted choices"] = scores.shifted[:, -1], scores.shifted[:, 0]
    pairs["shifted own"] = scores.shifted[:, -1], scores.shifted_others[:, -1]
    pairs["shifted over model"] = scores.shifted[:, -1], last
    without_features, baseline = (best(f(scores))[1] for f in (_plain, _baselines))
    pairs["features"] = scores.linear, without_features
    pairs["model over baseline"] = last, baseline
    pairs["more people"] = last, scores.model[-2, :, -1]
    if len(sizes) > 2:
        pairs["more choices"] = last, model[:, -2]
    differences = np.stack([better - other for better, other in pairs.values()], axis=1)
    return dict(zip(pairs, gains(differences, num_resamples), strict=True))


def fall(scores: Scores, num_resamples: int = 1000) -> Comparison:
    """Compares the reward model's NLL at the largest n with that at n = 0, in nats.

    It can fall where accuracy does not rise: probabilities become truer.
    """
    return gains(scores.nll[:, -1:] - scores.nll[:, :1], num_resamples)[0]


def gains(differences: np.ndarray, num_resamples: int = 1000) -> list[Comparison]:
    """Returns the mean over people of each column of `[U, G]`, with its interval."""
    intervals = bootstrap_interval(differences, num_resamples)
    return [
        Comparison(*map(float, (mean, *ends)))
        for mean, ends in zip(differences.mean(0), intervals, strict=True)
    ]


def best(predictions: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray]:
    """Returns the name and the accuracies `[U]` of the best prediction on average."""
    return max(predictions.items(), key=lambda item: item[1].mean())


def _plain(scores: Scores) -> dict[str, np.ndarray]:
    """Returns the predictions without features.

    Popularity may do worse than a coin, where items of equal popularity were paired.
    """
    coin = np.full_like(scores.popularity, 0.5)
    return {"popularity": scores.popularity, "a coin": coin}


def _baselines(scores: Scores) -> dict[str, np.ndarray]:
    """Returns the predictions that are the same for everybody."""
    return {**_plain(scores), "one linear model": scores.linear}


def personal(gain: Comparison, own: Comparison) -> str:
    """Answers whether choices of a person help to predict the person's others.

    They do if predictions gain over n = 0 and over knowing somebody else's choices. The
    first alone may come from n = 0 being predicted badly, and the second alone may come
    from somebody else's choices being misleading.
    """
    answers = {gain.answer, own.answer}
    return LITTLE if LITTLE in answers else UNKNOWN if UNKNOWN in answers else YES


def answers(found: Mapping[str, Comparison]) -> dict[str, str]:
    """Answers each question by `compare`'s comparisons."""
    questions = ("features", "model over baseline", "more people", "more choices")
    return {
        "model learns the person": personal(found["choices"], found["own"]),
        "linear model learns the person": personal(
            found["shifted choices"], found["shifted own"]
        ),
        **{name: found[name].answer for name in questions if name in found},
    }


def sentences(
    scores: Scores,
    sizes: Sequence[int],
    trained_on: Sequence[int],
    found: Mapping[str, Comparison],
    fallen: Comparison,
) -> list[str]:
    """Says in plain sentences what was found; the last one is the conclusion.

    Args:
      scores: the accuracies.
      sizes: the C context sizes.
      trained_on: the S numbers of training people.
      found: their comparisons, by `compare`.
      fallen: what `fall` returned.
    """
    answer = answers(found)
    people, n = len(scores.linear), sizes[-1]
    lines = [
        _on_the_person(
            "the reward model",
            answer["model learns the person"],
            scores.model[-1, :, -1].mean(),
            (found["choices"], found["own"]),
            (n, people),
        ),
        _on_nll(scores, n, fallen),
        _on_the_person(
            "a linear model that the person's choices shift",
            answer["linear model learns the person"],
            scores.shifted[:, -1].mean(),
            (found["shifted choices"], found["shifted own"]),
            (n, people),
        ),
        _on_features(scores, found["features"]),
        _on_more(
            "people",
            f"trained on {trained_on[-1]} people instead of {trained_on[-2]}",
            found["more people"],
        ),
    ]
    if "more choices" in found:
        given = f"after {n} choices instead of {sizes[-2]}"
        lines.append(_on_more("choices of each person", given, found["more choices"]))
    return [*lines, _conclusion(scores, sizes, trained_on, found)]


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _on_the_person(subject, answer, accuracy, compared, counts) -> str:
    n, people = counts
    begin = {
        YES: f"People differ, and {subject} learns it from their choices:",
        LITTLE: f"Knowing the person helps {subject} little, if at all:",
        UNKNOWN: f"Whether knowing the person helps {subject} cannot be told from "
        f"{people} people:",
    }
    over_none, over_others = compared
    return (
        f"{begin[answer]} with {n} of a person's choices known it predicts "
        f"{_share(accuracy)} of their others, {over_none} against knowing none and "
        f"{over_others} against knowing {n} choices of somebody else."
    )


def _on_nll(scores: Scores, n: int, fallen: Comparison) -> str:
    first, last = scores.nll[:, 0].mean(), scores.nll[:, -1].mean()
    begin = "The choices make its probabilities truer:"
    if not fallen.high < 0:
        begin = "Whether the choices make its probabilities truer cannot be told:"
    if fallen.low > 0:
        begin = "The choices make its probabilities worse:"
    return (
        f"{begin} its negative log-likelihood is {first:.3f} nats with none known and "
        f"{last:.3f} with {n}, {fallen.difference:+.3f} [{fallen.low:+.3f}, "
        f"{fallen.high:+.3f}]."
    )


def _on_features(scores: Scores, gain: Comparison) -> str:
    begin = {
        YES: "The features tell more than popularity:",
        LITTLE: "The features tell little more than popularity, if anything:",
        UNKNOWN: "Whether the features tell more than popularity cannot be told:",
    }
    return (
        f"{begin[gain.answer]} one linear model of them for everybody predicts "
        f"{_share(scores.linear.mean())} of choices and popularity "
        f"{_share(scores.popularity.mean())}; the former gains {gain} over "
        f"{best(_plain(scores))[0]}."
    )


def _on_more(what: str, given: str, gain: Comparison) -> str:
    begin = {
        YES: f"More {what} would probably help:",
        LITTLE: f"More {what} would probably help little:",
        UNKNOWN: f"Whether more {what} would help cannot be told:",
    }
    return f"{begin[gain.answer]} {given}, the reward model gains {gain}."


def _conclusion(scores, sizes, trained_on, found) -> str:
    answer = answers(found)
    by_model = answer["model learns the person"]
    by_linear = answer["linear model learns the person"]
    over = found["model over baseline"]
    baseline = best(_baselines(scores))[0]
    ahead = found["shifted over model"]
    simpler = (
        f" A simpler model, the linear model that the choices shift, is {ahead} "
        "better, so the reward model has not learnt all there is."
        if ahead.low > 0
        else ""
    )
    # A short training may be too short or too long: the probe does not say which.
    advice = (
        " More people may help, or more steps (--steps) where the validation loss "
        "still falls."
    )
    if by_model == YES and over.answer == YES:
        return (
            f"It works on these data: with {sizes[-1]} choices known, the reward model "
            f"gains {over} over the best model that treats everybody alike "
            f"({baseline})."
            f"{simpler + advice if simpler else ''}"
        )
    if by_model == YES:
        return (
            "It may work on these data: the reward model learns people, but it is not "
            "surely better than the best model that treats everybody alike "
            f"({baseline}): {over}.{simpler}{advice}"
        )
    if by_linear == YES:
        return (
            "It may work on these data: people differ in these features, but a short "
            f"training on {trained_on[-1]} people did not show the reward model how."
            f"{simpler}{advice} So may fewer and better features."
        )
    if by_model == by_linear == LITTLE:
        return (
            "Do not expect it to work on these data: a gain of "
            f"{100 * WORTH:.0f} points from knowing a person is not in sight. Features "
            "that show what people care about could change that."
        )
    return (
        f"Whether it works on these data cannot be told from {len(scores.linear)} "
        "people: get more people or more choices of each, or other features."
    )
