"""Scores the best checkpoint of a run: `fsa evaluate --workdir=DIR`.

Prints a table, and writes `evaluation.json` and pictures into the run directory. With
`--data=DATASET` a policy predicts the choices of other users, and the files go into a
folder of the dataset's name in the run directory.
`fsa evaluate --compare A B C` compares runs that were evaluated before, in
one table and one picture (`--out`, by default compare.png in the first run directory).
"""

from absl import flags

from fsa.commands import command_line
from fsa.errors import InputError
from fsa.evaluation.comparison import compare
from fsa.recipes.evaluate import evaluate
from fsa.recipes.policy_evaluation import METHODS

_WORKDIR = flags.DEFINE_string("workdir", None, "The run to score.")
_COMPARE = flags.DEFINE_bool("compare", False, "Put the runs that follow side by side.")
_METHOD = flags.DEFINE_enum(
    "method",
    None,
    METHODS,
    "For the run of a policy: the policy itself, or its language model with the best "
    "of 16 texts by the reward model, or with the person's choices shown as examples.",
)
_DATA = flags.DEFINE_string(
    "data", None, "Dataset to score a policy on; by default that of its run."
)
_OUT = flags.DEFINE_string("out", None, "Picture that --compare writes.")


def main(argv):
    """Scores one run, or compares several."""
    if _COMPARE.value:
        if len(argv) < 2:
            raise InputError("`compare`: name the run directories after it")
        if _OUT.value:
            command_line.make_folder_of(_OUT.value, "out")
        compare(argv[1:], _OUT.value)
    elif _WORKDIR.value:
        evaluate(_WORKDIR.value, method=_METHOD.value, data=_DATA.value)
    else:
        raise InputError("give `workdir`, or `compare` and run directories")
