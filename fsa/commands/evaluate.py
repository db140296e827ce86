"""Scores the best checkpoint of a run: `fsa evaluate --workdir=DIR`.

    fsa evaluate --workdir=runs/mine

Prints what it means and a table (`--full`: all measures, each with its meaning), and
writes `evaluation.json` and pictures into the run directory. With
`--data=DATASET` it predicts the choices in another dataset, and the files go into a
folder of the dataset's name in the run directory; if other data of that name were
evaluated before, into one with a part of its digest in the name. `--data` and `--model`
also say where the dataset and the language model of the run are, if they have moved.
`fsa evaluate --compare A B C` compares runs that were evaluated before, in
one table and one picture (`--out`, by default compare.png in the first run directory).

All devices share the work. Several processes are started as those of `fsa train`, with
`--coordinator=HOST:PORT --num_processes=N --process_id=I` where they do not find each
other. `--fsdp=N` splits a policy that is too large for a device (docs/pods.md).
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
    "data", None, "Dataset to score on: where that of the run is now, or another one."
)
_MODEL = flags.DEFINE_string(
    "model", None, "Where the language model of a policy is, if it has moved."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Number of texts of a policy that a device writes at a time.", 1
)
_DEVICES = command_line.device_flags("as in training, if that divides the devices")
_FULL = flags.DEFINE_bool("full", False, "Print all measures and what they mean.")
_OUT = flags.DEFINE_string("out", None, "Picture that --compare writes.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing --out.")


def main(argv):
    """Scores one run, or compares several."""
    if _COMPARE.value:
        if len(argv) < 2:
            raise InputError("`compare`: name the run directories after it")
        if _OUT.value:
            overwrite = _OVERWRITE.value
            command_line.make_place(_OUT.value, "out", overwrite, endings=())
        compare(argv[1:], _OUT.value, full=_FULL.value)
        return
    command_line.refuse_arguments(argv)
    if _WORKDIR.value:
        evaluate(
            _WORKDIR.value,
            method=_METHOD.value,
            data=_DATA.value,
            model=_MODEL.value,
            full=_FULL.value,
            batch_size=_BATCH_SIZE.value,
            **_DEVICES.sizes(),
        )
    else:
        raise InputError("give `workdir`, or `compare` and run directories")
