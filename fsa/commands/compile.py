"""Reports what a pod needs: `fsa compile --config=FILE --topology=v5e:16x16`.

The training step of the config is compiled for a pod that need not exist, on any
machine with the TPU compiler (the extra `tpu`); no weights and no choices are read.
`--topology=local` compiles for the devices of this machine. docs/dry_runs.md explains
the figures and how accurate they are.

    fsa compile --config=mine.py --topology=v5e:16x16 --out=cost.json

`--step=evaluate` compiles what `fsa evaluate` does with a policy for the people that it
predicts together, and `--step=write` what writes the texts of `fsa steer`.
"""

import json
import time

from absl import flags

from fsa import bars, folders
from fsa.commands import command_line, experiment_file
from fsa.cost_model.compile_step import find_devices
from fsa.recipes.config import resolve
from fsa.recipes.dry_run import STEPS, TRAIN, dry_run

_CONFIG = experiment_file.define_flag()
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "TPU topology, such as v5e:16x16, or local.", required=True
)
_SLICES = flags.DEFINE_integer("slices", 1, "Number of slices of that topology.", 1)
_STEP = flags.DEFINE_enum("step", TRAIN, STEPS, "What is compiled.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    8,
    "With --step=write: number of texts that a device writes at a time.",
    1,
)
_OUT = flags.DEFINE_string("out", None, "JSON file to write the figures to.")
_TEXT = flags.DEFINE_string("text", None, "File to write the compiled program to.")
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace existing files of --out and --text."
)


def main(argv):
    """Compiles the step, and prints and writes its memory, work and time."""
    command_line.refuse_arguments(argv)
    devices, chip = find_devices(_TOPOLOGY.value, _SLICES.value)
    config = resolve(experiment_file.config_of(_CONFIG), num_devices=len(devices))
    for flag in (_OUT, _TEXT):
        if flag.value:
            overwrite = _OVERWRITE.value
            command_line.make_place(flag.value, flag.name, overwrite, endings=())
    begin, computed = time.monotonic(), time.process_time()
    with bars.Bar(1, "Compiling", "program") as bar:
        found = dry_run(
            config,
            devices,
            chip,
            _SLICES.value,
            keep=_write_text,
            step=_STEP.value,
            texts=_BATCH_SIZE.value,
        )
        bar.advance()
    spent = time.monotonic() - begin
    print(found.to_text())
    print(
        f"Compiled in {spent:.0f} s, {time.process_time() - computed:.0f} s of them "
        "on a processor."
    )
    if _OUT.value:
        figures = {**found.to_json(), "compile_seconds": spent}
        folders.write_text(_OUT.value, json.dumps(figures, indent=2) + "\n")


def _write_text(text: str):
    if _TEXT.value:
        folders.write_text(_TEXT.value, text)
