"""Ranks options for a new person: `fsa predict --workdir=DIR ...`.

`--context` is a table of the person's choices (columns chosen, rejected), `--options` a
table of what to rank (column option); .jsonl, .csv or .parquet. An option is

* a list of numbers, its features (jsonl), for models of simulated users;
* the id or text of an item of the run's dataset, whose vector is known;
* any other text, with `--embedder=FOLDER`, the model that embedded the dataset.

Prints the options from the most to the least wanted, each with its mean probability of
being chosen over another option and the uncertainty of that; `--out` also saves them.
"""

from absl import flags

from fsa.commands import command_line
from fsa.data import files
from fsa.data.columns import read_values
from fsa.inference.ranker import Ranker

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
    context = _CONTEXT.value
    choices = {
        column: read_values(context, column) if context else []
        for column in ("chosen", "rejected")
    }
    options = read_values(_OPTIONS.value, "option")
    ranker = Ranker.load(_WORKDIR.value, embedder=_EMBEDDER.value)
    ranking = ranker.rank(options, **choices)
    print(ranking)
    if _OUT.value:
        files.write_jsonl(_OUT.value, ranking.rows())
