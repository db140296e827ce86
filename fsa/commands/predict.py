"""Ranks given options for a new person: `fsa predict --workdir=DIR ...`.

`--context` is a table of the person's choices (columns chosen, rejected), `--options` a
table of what to rank (column option); .jsonl, .csv or .parquet. Both may have a column
prompt: what the options answer; options of several prompts are compared within each,
as people compare them. A row of the context may also be a tie (true in a
column tie), a like or a dislike (column liked or disliked) or a rating (columns item,
value), if the model was trained for it (the field model.context). An option is

* a list of numbers, its features (jsonl), for models of simulated users;
* the id or text of an item of the run's dataset, whose vector is known;
* any other text, with `--embedder=FOLDER`, the model that embedded the dataset. Another
  one is refused; the text is filled into the dataset's template.

    fsa predict --workdir=runs/mine --context=me.jsonl --options=options.jsonl

Prints the options from the most to the least wanted, each with its mean probability of
being chosen over another option and the uncertainty of that; `--out` also saves them.
"""

from absl import flags

from fsa import bars
from fsa.commands import command_line
from fsa.commands.told_table import ToldTable, at_its_option
from fsa.data import files
from fsa.data.columns import read_options
from fsa.inference.feedback import NotTrained
from fsa.inference.option_lookup import BadOption
from fsa.inference.ranker import Ranker
from fsa.training.compile_cache import keep_compiled

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory.", required=True)
_CONTEXT = flags.DEFINE_string("context", None, "Table of the person's choices.")
_OPTIONS = flags.DEFINE_string("options", None, "Table of the options.", required=True)
_EMBEDDER = flags.DEFINE_string("embedder", None, "Folder of an embedding model.")
_DATA = flags.DEFINE_string(
    "data", None, "Where the dataset of the run is, if it has moved."
)
_OUT = flags.DEFINE_string("out", None, "Also save the ranking there, as .jsonl.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing --out.")


def main(argv):
    """Ranks the options and prints them."""
    command_line.refuse_arguments(argv)
    if _OUT.value:
        command_line.make_place(_OUT.value, "out", _OVERWRITE.value)
    context = ToldTable(_CONTEXT.value)
    if context.left_out:
        print(
            f"{context.path}: {context.left_out} of {context.num_rows} choices left "
            "out: chosen and rejected are the same"
        )
    options = read_options(_OPTIONS.value, ["option"])
    with keep_compiled(_WORKDIR.value), bars.Bar(2, "Ranking", "part") as bar:
        bar.say("loading the model")
        ranker = Ranker.load(_WORKDIR.value, embedder=_EMBEDDER.value, data=_DATA.value)
        bar.advance()
        bar.say("inferring what the person wants")
        try:
            ranking = ranker.rank(
                [row["option"] for _, row in options],
                within_prompts=True,
                **context.arguments,
            )
        except (BadOption, NotTrained) as error:
            if error.argument != "options":
                raise context.at_its_row(error) from error
            numbers = [number for number, _ in options]
            raise at_its_option(error, _OPTIONS.value, numbers) from error
        bar.advance()
    print(ranking)
    if _OUT.value:
        files.write_jsonl(_OUT.value, ranking.rows())
