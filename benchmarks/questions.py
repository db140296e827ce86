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

Shapes: E episodes (a division of a person's pairs), P pairs of the pool, M targets.
"""

import time

import jax
import numpy as np
from absl import flags

from benchmarks.replay import WAYS, replayed, report
from fsa.commands import command_line
from fsa.data import dataset
from fsa.data.tasks.task import TEST, VALID
from fsa.episodes import Choices, Options
from fsa.inference.ranker import Ranker
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
    found = {
        way: replayed(ranker, way, pools, targets, min(size, 20), _SEED.value)
        for way in WAYS
    }
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
