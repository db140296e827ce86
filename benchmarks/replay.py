"""Replays answers that are known, for `benchmarks/questions.py`.

Shapes: E episodes (a division of a person's pairs), P pairs of the pool, M targets, N
questions, K samples of z, U people.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from fsa import text_tables
from fsa.episodes import Episode, as_feedback
from fsa.inference.ranker import Ranker
from fsa.latent import mixture
from fsa.latent.questions import gain_of_samples, information_gain
from fsa.models import reward_models
from fsa.models.linear_reward import LinearRewardModel

ASKED, UNCERTAIN, RANDOM = WAYS = ("asked", "uncertain", "random")
_SHOWN = (0, 1, 3, 5, 8, 10)
_COMPARED = (1, 3, 5, 10)
_AT_ONCE = 64


def make_replay(ranker: Ranker, way: str, num_questions: int):
    """Returns a function of one episode: (pool, target, key) -> log p `[N + 1, M]`."""
    model, variables = ranker.model, ranker.variables
    apply = functools.partial(model.apply, variables)

    def expectations(pool, known, key):
        """Gain and log-probability `[P]` of the pairs of a pool."""
        q = apply(pool._replace(mask=known), method=model.encode)
        if isinstance(model, LinearRewardModel):
            told = apply(as_feedback(pool), method=model.observations)
            utility = told.features, told.offset
            return information_gain(q, *utility), mixture.predict(q, *utility)
        z = mixture.mean_or_samples(q, key, ranker.num_samples, deterministic=False)
        log_p = apply(pool, z, method=model.log_prob)
        # 1 - p, of both kinds of likelihood.
        both = jnp.stack([log_p, jnp.log1p(-jnp.exp(jnp.minimum(log_p, -1e-6)))])
        mean = jax.scipy.special.logsumexp(log_p, axis=0) - jnp.log(len(z))
        return gain_of_samples(both), mean

    def predict(pool, known, target, key):
        episode = Episode(pool._replace(mask=known), target, jnp.int32(0))
        return reward_models.predict(
            model, variables, episode, key, num_samples=ranker.num_samples
        )

    def score(pool, known, key):
        if way == RANDOM:
            return jax.random.uniform(key, known.shape)
        gain, log_p = expectations(pool, known, key)
        return gain if way == ASKED else -jnp.abs(jnp.exp(log_p) - 0.5)

    def replay(pool, target, key):
        def ask(known, key):
            found = predict(pool, known, target, key)
            scores = jnp.where(known, -jnp.inf, score(pool, known, key))
            return known | (jnp.arange(len(known)) == jnp.argmax(scores)), found

        keys = jax.random.split(key, num_questions + 1)
        return jax.lax.scan(ask, jnp.zeros(pool.mask.shape, bool), keys)[1]

    return replay


def replayed(ranker, way, pools, targets, num_questions, seed) -> np.ndarray:
    """Returns log p of the targets after each number of questions, `[E, N + 1, M]`."""
    replay = make_replay(ranker, way, num_questions)
    keys = jax.random.split(jax.random.key(seed), len(pools.mask))

    @jax.jit
    def every(pools, targets, keys):
        return jax.lax.map(
            lambda each: replay(*each), (pools, targets, keys), batch_size=_AT_ONCE
        )

    return np.asarray(every(pools, targets, keys))


def by_person(values: np.ndarray, who: np.ndarray) -> np.ndarray:
    """Averages values `[E, ...]` over the episodes of each person."""
    return np.stack([values[who == person].mean(axis=0) for person in np.unique(who)])


def _row(name: str, values: np.ndarray, form: str) -> list[str]:
    return [name, *(format(values[:, n].mean(), form) for n in _SHOWN)]


def interval(values: np.ndarray, form: str = ".1f") -> str:
    """Formats the mean of values `[U]` with its bootstrap interval."""
    found = scipy.stats.bootstrap(
        (values,), np.mean, method="basic", rng=np.random.default_rng(0)
    ).confidence_interval
    mean, low, high = (
        format(x, f"+{form}") for x in (values.mean(), found.low, found.high)
    )
    return f"{mean} [{low}, {high}]"


def worth(curve: np.ndarray, value: float) -> str:
    """Returns how many random questions are worth a value, by their curve `[N + 1]`."""
    above = np.flatnonzero(curve >= value)
    if not len(above):
        return f"> {len(curve) - 1}"
    n = int(above[0])
    if n == 0:
        return "0"
    share = (value - curve[n - 1]) / (curve[n] - curve[n - 1])
    return f"{n - 1 + share:.1f}"


def report(found: dict[str, np.ndarray], who: np.ndarray) -> str:
    """Formats accuracies, log-losses and paired gains as Markdown."""
    right = {
        way: 100 * by_person((log_p > np.log(0.5)).mean(axis=-1), who)
        for way, log_p in found.items()
    }
    loss = {way: by_person(-log_p.mean(axis=-1), who) for way, log_p in found.items()}
    head = ["right, %, questions", *map(str, _SHOWN)]
    rows = [_row(way, values, ".1f") for way, values in right.items()]
    rows += [_row(f"NLL, {way}", values, ".3f") for way, values in loss.items()]
    parts = [text_tables.markdown([head, *rows])]
    head = ["questions", *map(str, _COMPARED)]
    rows = []
    for way in (ASKED, UNCERTAIN):
        gains = (interval(right[way][:, n] - right[RANDOM][:, n]) for n in _COMPARED)
        rows.append([f"{way} against random, points", *gains])
        gains = (
            interval(loss[way][:, n] - loss[RANDOM][:, n], ".3f") for n in _COMPARED
        )
        rows.append([f"{way} against random, NLL", *gains])
    for what, values, sign in (("points", right, 1), ("NLL", loss, -1)):
        curve, asked = (sign * values[way].mean(axis=0) for way in (RANDOM, ASKED))
        worths = (worth(curve, asked[n]) for n in _COMPARED)
        rows.append([f"asked are worth so many at random, by {what}", *worths])
    parts.append(text_tables.markdown([head, *rows]))
    for n in (3, 5):
        gain = interval(right[ASKED][:, n] - right[RANDOM][:, 8])
        parts.append(f"{n} asked against 8 at random: {gain} points.")
    return "\n\n".join(parts)
