"""Predicts the 300 people of CrowdRAG-25 in folds: does knowing a person help there?

`python -m benchmarks.crowdrag --shared=FOLDER` makes two datasets with features of the
form of answers (their length, lists and the like, by `benchmarks.probe_data`): one with
the splits of the data, and one in which all 300 people are in train or valid, so that
everybody is predicted by models that others trained. It prints the commands that then
score them. FOLDER holds the folder `crowdrag25`. It also writes the choices with a
group for each person, by their taste for lists (crowdrag-tastes.jsonl), so that an
evaluation tells what is written for whom; nothing is trained on these groups.
"""

import pathlib
import subprocess
import sys

from absl import flags

from benchmarks import probe_data
from fsa.commands import command_line

_SHARED = flags.DEFINE_string("shared", "../shared/data", "Folder of the real data.")
_OUT = flags.DEFINE_string("out", "data", "Folder to make the datasets in.")


def main(argv):
    """Makes the datasets."""
    command_line.refuse_arguments(argv)
    sources, out = probe_data.Sources(_SHARED.value), pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    by_form = sources.answers_by_form(out)
    rows = probe_data.read(sources.path("crowdrag25", "choices.jsonl.gz"))
    table = probe_data.write(
        out / "crowdrag-everybody.jsonl", probe_data.everybody(rows)
    )
    tastes = probe_data.with_tastes(rows)
    probe_data.write(out / "crowdrag-tastes.jsonl", tastes)
    for name, arguments in (
        ("crowdrag", by_form),
        ("crowdrag-everybody", [f"--choices={table}", *by_form[1:]]),
    ):
        command = [sys.executable, "-m", "fsa", "prepare", *arguments]
        command += [f"--out={out / name}", "--overwrite"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(
            "next: python -m benchmarks.people --config=experiments/crowdrag.py "
            f"--data={out / name} --setting=bayes"
        )


if __name__ == "__main__":
    command_line.run(main)
