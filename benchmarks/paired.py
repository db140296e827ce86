"""Compares trained runs on test people, paired: the same people and the same choices.

`python -m benchmarks.paired --runs=a-0,a-1,a-2 --runs=b-0,b-1,b-2` prints a line for
each group of runs, such as seeds of a model: accuracy and NLL as `fsa evaluate`
measures them, means over the runs of a group, and the difference from the first group
with its 95% bootstrap interval over people. Runs have to be of one dataset and of the
same sizes of contexts. What was measured before is in `people.npz` of a run.
"""

import pathlib

import numpy as np
from absl import flags

from benchmarks.paired_difference import paired
from fsa.commands import command_line
from fsa.errors import InputError
from fsa.evaluation.scores import right, user_means
from fsa.inference.ranker import Ranker
from fsa.recipes import config as configs
from fsa.recipes.reward_model_evaluation import predictor
from fsa.recipes.reward_model_run import load_task
from fsa.training import run_directory

_RUNS = flags.DEFINE_multi_string(
    "runs", None, "Runs of a group, separated by commas.", required=True
)


def measured(run: str) -> dict[str, np.ndarray]:
    """Returns each test person's accuracy and NLL, `[U, C]` each, and the sizes."""
    path = pathlib.Path(run, "people.npz")
    if not path.exists():
        run_dir = run_directory.locate(run)
        config, ranker = configs.read(run_dir), Ranker.load(run_dir)
        task = load_task(config)
        predict = predictor(config, ranker, task)
        found = predict(ranker.variables)
        np.savez(
            path,
            sizes=predict.num_context,
            accuracy=user_means(right(found.log_prob), found.mask),
            nll=user_means(-found.log_prob, found.mask),
        )
    with np.load(path) as file:
        return dict(file)


def mean_of(runs: str) -> dict[str, np.ndarray]:
    """Returns the means over the runs of a group."""
    found = [measured(run) for run in runs.split(",")]
    return {name: np.mean([of_run[name] for of_run in found], 0) for name in found[0]}


def row(runs: str, reference: dict[str, np.ndarray]) -> str:
    """Formats the line of a group."""
    found, last = mean_of(runs), slice(-1, None)
    if found["nll"].shape != reference["nll"].shape:
        raise InputError(f"`runs`={runs}: is scored on others than the first runs")
    difference = {name: found[name] - reference[name] for name in ("accuracy", "nll")}
    cells = [
        ", ".join(pathlib.Path(run).name for run in runs.split(",")),
        str(len(found["nll"])),
        " ".join(f"{100 * x:.1f}" for x in found["accuracy"].mean(0)),
        " ".join(f"{x:.4f}" for x in found["nll"].mean(0)),
        paired(difference["accuracy"][:, last], 100, 1),
        paired(difference["nll"][:, last], 1, 4),
        paired(difference["nll"][:, :1], 1, 4),
    ]
    return f"| {' | '.join(cells)} |"


def main(argv):
    """Prints the table."""
    command_line.refuse_arguments(argv)
    reference = mean_of(_RUNS.value[0])
    sizes = ", ".join(f"{n:.0f}" for n in reference["sizes"])
    head = ["runs", "test people", f"right, %, at n = {sizes}", "NLL"]
    head += ["points, last n, against the first", "NLL, last n", "NLL, n = 0"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for runs in _RUNS.value:
        print(row(runs, reference), flush=True)


if __name__ == "__main__":
    command_line.run(main)
