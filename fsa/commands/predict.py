"""Ranks options for a new person: `python -m launch.predict --workdir=DIR ...`.

`--context` is a table of the person's choices (columns chosen, rejected), `--options` a
table of what to rank (column option); .jsonl, .csv or .parquet. An option is

* a list of numbers, its features (jsonl), for models of simulated users;
* the id or text of an item of the run's data set, whose vector is known;
* any other text, with `--embedder=FOLDER`, the model that embedded the data set.

Prints the options from the most to the least wanted with the probability of being
chosen over another of them, and how uncertain that is; `--out` also saves them.
"""

import json

import numpy as np
from absl import flags
from etils import epath

from fsa.commands import command_line
from fsa.data import dataset, files
from fsa.errors import InputError
from fsa.evaluation.report import format_rows
from fsa.inference.predictor import Predictor
from fsa.training import run_directory

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained run.", required=True)
_CONTEXT = flags.DEFINE_string("context", None, "The person's choices.")
_OPTIONS = flags.DEFINE_string("options", None, "What to rank.", required=True)
_EMBEDDER = flags.DEFINE_string("embedder", None, "Folder of an embedding model.")
_OUT = flags.DEFINE_string("out", None, "Also save the ranking there, as .jsonl.")


def _column(path: str, name: str) -> list:
    """The values of a column, which every row must have."""
    values = []
    for number, row in files.read_rows(path):
        if row.get(name) in (None, "", []):
            found = ", ".join(row)
            raise InputError(f"{path} row {number}: no {name!r} among {found}")
        values.append(row[name])
    return values


class _Resolver:
    """Turns what a table says of an option into features and an item index."""

    def __init__(self, config: dict, num_features: int):
        self._num_features = num_features
        self._known, self._features = {}, None
        if config["task"]["name"] == "people":
            data = dataset.load(config["task"]["path"])
            self._features = data.features
            self._known = {text: i for i, text in enumerate(data.texts)}
            self._known |= {name: i for i, name in enumerate(data.item_ids)}

    def __call__(self, path: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(`[N, F]` features, `[N]` items) of a column."""
        values = _column(path, name)
        items = np.full(len(values), -1, np.int32)
        features = np.zeros((len(values), self._num_features), np.float32)
        unknown = []
        for row, value in enumerate(values):
            if isinstance(value, list):
                features[row] = self._check(path, name, row, value)
            elif value in self._known:
                items[row] = self._known[value]
                features[row] = self._features[items[row]]
            else:
                unknown.append(row)
        if unknown and not _EMBEDDER.value:
            raise InputError(
                f"{path} row {unknown[0] + 1}: {name} {values[unknown[0]]!r} is not in "
                "the data set; give --embedder=FOLDER, or a list of numbers"
            )
        if unknown:
            # That command line has flags of its own, which are none of ours.
            from fsa.commands.embed import embed

            vectors = embed([values[row] for row in unknown], _EMBEDDER.value, 64)
            for row, vector in zip(unknown, vectors, strict=True):
                features[row] = self._check(path, name, row, vector)
        return features, items

    def _check(self, path, name, row, vector):
        vector = np.asarray(vector, np.float32)
        if vector.shape != (self._num_features,) or not np.isfinite(vector).all():
            raise InputError(
                f"{path} row {row + 1}: {name} must be {self._num_features} finite "
                f"numbers, as the model was trained on, not shape {vector.shape}"
            )
        return vector


def main(argv):
    """Ranks the options and prints them."""
    command_line.refuse_arguments(argv)
    predictor = Predictor.load(_WORKDIR.value)
    resolve = _Resolver(
        run_directory.read_config(_WORKDIR.value), predictor.num_features
    )
    empty = np.zeros((0, predictor.num_features), np.float32), np.zeros(0, np.int32)
    chosen = resolve(_CONTEXT.value, "chosen") if _CONTEXT.value else empty
    rejected = resolve(_CONTEXT.value, "rejected") if _CONTEXT.value else empty
    options = resolve(_OPTIONS.value, "option")
    ranking = predictor.rank(
        chosen=chosen[0],
        chosen_item=chosen[1],
        rejected=rejected[0],
        rejected_item=rejected[1],
        options=options[0],
        option_item=options[1],
    )
    shown = _column(_OPTIONS.value, "option")
    ranked = [
        {
            "rank": rank,
            "option": shown[i],
            "probability": float(ranking.probability[i]),
            "std": float(ranking.std[i]),
        }
        for rank, i in enumerate(ranking.order, start=1)
    ]
    rows = [["option", "probability %", "+-"]]
    for entry in ranked:
        probability, std = 100 * entry["probability"], 100 * entry["std"]
        name = str(entry["option"])
        name = name if len(name) <= 70 else name[:67] + "..."
        rows.append([name, f"{probability:.1f}", f"{std:.1f}"])
    print(
        f"After {len(chosen[0])} choices, the probability of being chosen over "
        "another of these options:"
    )
    print(format_rows(rows))
    if _OUT.value:
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in ranked)
        epath.Path(_OUT.value).write_text(text)


if __name__ == "__main__":
    command_line.run(main)
