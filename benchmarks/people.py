"""Compares settings of reward models on people, in folds: test people stay unseen.

`python -m benchmarks.people --config=FILE --data=DATASET --setting=A --setting=B`
trains the experiment with each setting and prints a Markdown table: accuracy and NLL of
all people of train and valid, each predicted by models that people of other folds
trained. Differences from n = 0, and at the largest n from the first setting, are over
the same people and choices, with 95% bootstrap intervals over people. A setting is a
preset and fields, such as `bayes,model.dropout=0.5`; `train.steps` is one of them. What
was measured before is in `--workdir` and is not measured again.
"""

import hashlib
import json
import pathlib
import time

import numpy as np
from absl import flags

from benchmarks.paired_difference import paired
from benchmarks.settings import config_of
from fsa.commands import command_line
from fsa.errors import InputError
from fsa.evaluation.scores import right, user_means
from fsa.recipes.probe import predict_in_folds

_CONFIG = flags.DEFINE_string("config", None, "An experiment file.", required=True)
_DATA = flags.DEFINE_string("data", None, "A dataset.", required=True)
_SETTING = flags.DEFINE_multi_string(
    "setting",
    ["np-btl", "bayes"],
    "PRESET,FIELD=VALUE,...; others are compared with the first.",
)
_TRAININGS = flags.DEFINE_integer("trainings", 1, "Models for each fold.", 1)
_WORKDIR = flags.DEFINE_string("workdir", "runs/people", "Folder of what was measured.")


def measured(setting: str) -> dict[str, np.ndarray]:
    """Returns each person's accuracy and NLL, `[U, C]` each, means over trainings.

    With several trainings also those of their mean probability, and the seconds.
    """
    config = config_of(setting, _CONFIG.value, _DATA.value)
    told = json.dumps([config.to_dict(), _TRAININGS.value], sort_keys=True)
    name = hashlib.sha256(told.encode()).hexdigest()[:12]
    path = pathlib.Path(_WORKDIR.value, f"{name}.npz")
    if not path.exists():
        begin = time.process_time()
        sizes, found = predict_in_folds(
            config, steps=config.train.steps, trainings=_TRAININGS.value
        )
        log_probs = [p.log_prob for p in found]
        mask = found[0].mask
        together = np.logaddexp.reduce(log_probs, axis=0) - np.log(len(found))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            sizes=sizes,
            accuracy=np.mean([user_means(right(p), mask) for p in log_probs], 0),
            nll=np.mean([user_means(-p, mask) for p in log_probs], 0),
            accuracy_together=user_means(right(together), mask),
            nll_together=user_means(-together, mask),
            seconds=time.process_time() - begin,
        )
        path.with_suffix(".json").write_text(told)
    with np.load(path) as file:
        return dict(file)


def rows(setting: str, reference: dict[str, np.ndarray]) -> list[str]:
    """Formats the lines of a setting."""
    found = measured(setting)
    if len(found["nll"]) != len(reference["nll"]):
        raise InputError("the settings are scored on different people")
    lines, last = [], slice(-1, None)
    for suffix in ("", "_together") if _TRAININGS.value > 1 else ("",):
        accuracy, nll = found[f"accuracy{suffix}"], found[f"nll{suffix}"]
        fall, rise = nll[:, last] - nll[:, :1], accuracy[:, last] - accuracy[:, :1]
        lower = nll[:, last] - reference["nll"][:, last]
        higher = accuracy[:, last] - reference["accuracy"][:, last]
        cells = [setting.replace(",", ", ") + suffix.replace("_", ", ")]
        cells += [" ".join(f"{100 * x:.1f}" for x in accuracy.mean(0))]
        cells += [" ".join(f"{x:.4f}" for x in nll.mean(0))]
        cells += [paired(fall, 1, 4), paired(rise, 100, 1)]
        cells += [paired(lower, 1, 4), paired(higher, 100, 1)]
        cells += [f"{float(found['seconds']):.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(argv):
    """Prints the table, each line as soon as it is known."""
    command_line.refuse_arguments(argv)
    reference = measured(_SETTING.value[0])
    sizes = ", ".join(map(str, reference["sizes"]))
    head = ["setting", f"right, %, at n = {sizes}", "NLL"]
    head += ["NLL, last n against n = 0", "points, last n against n = 0"]
    head += ["NLL, last n, against the first setting", "points", "processor seconds"]
    print(f"{len(reference['nll'])} people\n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for setting in _SETTING.value:
        print("\n".join(rows(setting, reference)), flush=True)


if __name__ == "__main__":
    command_line.run(main)
