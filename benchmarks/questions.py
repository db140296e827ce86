"""Asks people what they have answered already, by several ways to choose questions.

    python -m benchmarks.questions --workdir=RUN [--data=DATASET]

Each person of the split `--split` has a pool of pairs whose answers are known, and
other pairs to predict. Questions are taken from the pool one after the other:

* asked: the pair whose answer is expected to tell most about z, see
  `fsa.latent.questions`;
* uncertain: the pair whose answer is the least predictable (largest entropy);
* random: in a random order.

People of a dataset need `--pairs` answered pairs; those are divided at random
`--divisions` times into `--targets` to predict and a pool of the others. Simulated
users have a pool of as many pairs as the largest of `eval.num_context` of their run,
and `eval.num_targets` others. Prints Markdown; intervals are 95% bootstrap intervals
over people.

Shapes: E episodes (a division of a person's pairs), P pairs of the pool, M targets, N
questions, K samples of z.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from absl import flags

from fsa import text_tables
from fsa.commands import command_line
from fsa.data import dataset
from fsa.data.tasks.task import TEST, VALID
from fsa.episodes import Choices, Options, as_feedback
from fsa.inference.ranker import Ranker
from fsa.latent import mixture
from fsa.latent.questions import gain_of_samples, information_gain
from fsa.models.linear_reward import LinearRewardModel
from fsa.recipes import config as configs
from fsa.recipes.reward_model_run import load_task
from fsa.training import run_directory

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory.", required=True)
_DATA = flags.DEFINE_string("data", None, "Dataset, if it has moved.")
_SPLIT = flags.DEFINE_enum("split", TEST, [VALID, TEST], "Whose people are asked.")
_PAIRS = flags.DEFINE_integer("pairs", 30, "Answered pairs of a person.")
_TARGETS = flags.DEFINE_integer("targets", 10, "Of them, those to predict.")
_DIVISIONS = flags.DEFINE_integer("divisions", 24, "Of a person's pairs.")
_USERS = flags.DEFINE_integer("users", 400, "Simulated users, at most.", 2)
_SEED = flags.DEFINE_integer("seed", 0, "Of divisions, simulated users and samples.")

ASKED, UNCERTAIN, RANDOM = WAYS = ("asked", "uncertain", "random")
_SHOWN = (0, 1, 3, 5, 8, 10)
_COMPARED = (1, 3, 5, 10)
_AT_ONCE = 64


def people(path: str, split: str) -> tuple[Choices, Choices, np.ndarray]:
    """Returns pools `[E, P]`, targets `[E, M]` and the people `[E]` they are of."""
    data = dataset.load(path)
    users = data.users[split]
    rng = np.random.default_rng(_SEED.value)
    chosen, rejected, who = [], [], []
    for user in range(len(users.names)):
        if len(users.chosen[user]) < _PAIRS.value:
            continue
        for _ in range(_DIVISIONS.value):
            order = rng.permutation(len(users.chosen[user]))[: _PAIRS.value]
            chosen.append(users.chosen[user][order])
            rejected.append(users.rejected[user][order])
            who.append(user)

    def options(items):
        return Options(data.features[items], items.astype(np.int32))

    def part(columns):
        sides = (np.stack(side)[:, columns] for side in (chosen, rejected))
        mask = np.ones((len(who), len(range(_PAIRS.value)[columns])), bool)
        return Choices(*map(options, sides), mask)

    targets = slice(0, _TARGETS.value)
    return part(slice(_TARGETS.value, None)), part(targets), np.array(who)


def simulated(config: dict, split: str) -> tuple[Choices, Choices, np.ndarray]:
    """Returns pools, targets and people of a simulated task, see `people`."""
    task = load_task(config)
    users = task.users(split)[: _USERS.value]
    key = jax.random.key(_SEED.value)
    draw = jax.jit(
        jax.vmap(lambda u: task.test_episode(task.constants, split, u, key).episode)
    )
    episodes = jax.device_get(draw(users))
    return episodes.context, episodes.target, users


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
        q = apply(pool._replace(mask=known), method=model.encode)
        if isinstance(model, LinearRewardModel):
            told = apply(as_feedback(target), method=model.observations)
            return mixture.predict(q, told.features, told.offset)
        z = mixture.mean_or_samples(q, key, ranker.num_samples, deterministic=False)
        log_p = apply(target, z, method=model.log_prob)
        return jax.scipy.special.logsumexp(log_p, axis=0) - jnp.log(len(z))

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


def replayed(ranker, way, pools, targets, num_questions) -> np.ndarray:
    """Returns log p of the targets after each number of questions, `[E, N + 1, M]`."""
    replay = make_replay(ranker, way, num_questions)
    keys = jax.random.split(jax.random.key(_SEED.value), len(pools.mask))

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


def main(argv):
    """Replays and prints."""
    command_line.refuse_arguments(argv)
    begin, used = time.monotonic(), time.process_time()
    config = configs.read(run_directory.locate(_WORKDIR.value))
    ranker = Ranker.load(_WORKDIR.value, any_data=True)
    if config["task"]["name"] == "people":
        path = _DATA.value or config["task"]["path"]
        pools, targets, who = people(path, _SPLIT.value)
    else:
        pools, targets, who = simulated(config, _SPLIT.value)
    size = pools.mask.shape[1]
    found = {way: replayed(ranker, way, pools, targets, min(size, 20)) for way in WAYS}
    print(
        f"{len(np.unique(who))} people, {len(who)} episodes, a pool of {size} pairs, "
        f"{targets.mask.shape[1]} targets.\n"
    )
    print(report(found, who))
    print(
        f"\n{time.monotonic() - begin:.0f} s, "
        f"{time.process_time() - used:.0f} processor seconds."
    )


if __name__ == "__main__":
    command_line.run(main)
