"""Ranks options for a new person: `python -m launch.predict --workdir=DIR ...`.

`--context` is a table of the person's choices (columns chosen, rejected), `--options` a
table of what to rank (column option); .jsonl, .csv or .parquet. An option is

* a list of numbers, its features (jsonl), for models of simulated users;
* the id or text of an item of the run's dataset, whose vector is known;
* any other text, with `--embedder=FOLDER`, the model that embedded the dataset.

Prints the options from the most to the least wanted, each with its mean probability of
being chosen over another option and the uncertainty of that; `--out` also saves them.
"""

import numpy as np
from absl import flags

from fsa import text_tables
from fsa.commands import command_line
from fsa.data import files
from fsa.data.columns import read_values
from fsa.inference.option_lookup import OptionLookup
from fsa.inference.predictor import Predictor
from fsa.recipes import config as configs

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory.", required=True)
_CONTEXT = flags.DEFINE_string("context", None, "Table of the person's choices.")
_OPTIONS = flags.DEFINE_string("options", None, "Table of the options.", required=True)
_EMBEDDER = flags.DEFINE_string("embedder", None, "Folder of an embedding model.")
_OUT = flags.DEFINE_string("out", None, "Also save the ranking there, as .jsonl.")


def main(argv):
    """Ranks the options and prints them."""
    command_line.refuse_arguments(argv)
    if _OUT.value:
        command_line.make_place(_OUT.value, "out")
    predictor = Predictor.load(_WORKDIR.value)
    task = configs.read(_WORKDIR.value)["task"]
    lookup = OptionLookup(predictor.num_features, task.get("path"), _EMBEDDER.value)
    empty = np.zeros((0, predictor.num_features), np.float32), np.zeros(0, np.int32)
    chosen = lookup(_CONTEXT.value, "chosen") if _CONTEXT.value else empty
    rejected = lookup(_CONTEXT.value, "rejected") if _CONTEXT.value else empty
    options = lookup(_OPTIONS.value, "option")
    ranking = predictor.rank(
        chosen=chosen[0],
        chosen_item=chosen[1],
        rejected=rejected[0],
        rejected_item=rejected[1],
        options=options[0],
        option_item=options[1],
    )
    shown = read_values(_OPTIONS.value, "option")
    ranked = [
        {
            "rank": rank,
            "option": shown[i],
            "probability": float(ranking.probability[i]),
            "std": float(ranking.std[i]),
        }
        for rank, i in enumerate(ranking.order, start=1)
    ]
    print(
        f"After {len(chosen[0])} choices, the probability of being chosen over "
        "another of these options:"
    )
    print(text_tables.aligned([["option", "probability %", "+-"], *map(_row, ranked)]))
    if _OUT.value:
        files.write_jsonl(_OUT.value, ranked)


def _row(entry: dict) -> list[str]:
    name = str(entry["option"])
    name = name if len(name) <= 70 else name[:67] + "..."
    return [name, f"{100 * entry['probability']:.1f}", f"{100 * entry['std']:.1f}"]


if __name__ == "__main__":
    command_line.run(main)
