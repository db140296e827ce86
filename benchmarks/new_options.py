"""Makes datasets for the question whether statements that nobody judged are understood.

`python -m benchmarks.new_options --data=DATASET --out=PATH` writes PATH-new, in which
training people's votes on a part of the statements are left out and the people of valid
and test choose between these statements alone, and PATH-known, in which training people
keep their votes; the choices to predict are the same. It prints the commands that train
on each.
"""

from absl import flags

from fsa.commands import command_line
from fsa.data import dataset
from fsa.data.tasks import new_options

_DATA = flags.DEFINE_string("data", None, "A dataset with votes.", required=True)
_OUT = flags.DEFINE_string("out", None, "Where to write.", required=True)
_SHARE = flags.DEFINE_float("share", 0.5, "Share of statements left out.", 0.0, 1.0)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace datasets.")


def main(argv):
    """Writes both datasets."""
    command_line.refuse_arguments(argv)
    data = dataset.load(_DATA.value)
    for name, known in (("new", False), ("known", True)):
        path = f"{_OUT.value}-{name}"
        made = new_options.hold_out(data, _SHARE.value, known=known)
        dataset.write(path, made, overwrite=_OVERWRITE.value)
        print(
            "next: fsa train --config=experiments/polis/consultation.py:bayes "
            f"--config.task.path={path} --workdir=runs/{name}"
        )


if __name__ == "__main__":
    command_line.run(main)
