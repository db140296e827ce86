"""Compiles a run's training step for a pod that need not exist, and reports its cost.

`fsa compile --config=FILE[:ARG] --topology=v5e:16x16 [--out=FILE.json]`, on any machine
with the TPU compiler (the extra `tpu`); no weights and no choices are read.
`--topology=local` compiles for the devices of this machine. docs/dry_runs.md explains
the figures and how accurate they are.
"""

import json
import time

from absl import flags
from etils import epath
from ml_collections import config_flags

from fsa.commands import command_line
from fsa.cost_model.compile_step import find_devices
from fsa.recipes.config import resolve
from fsa.recipes.dry_run import dry_run

_CONFIG = config_flags.DEFINE_config_file("config", help_string="An experiment file.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "TPU topology, such as v5e:16x16, or local.", required=True
)
_SLICES = flags.DEFINE_integer("slices", 1, "Number of slices of that topology.", 1)
_OUT = flags.DEFINE_string("out", None, "JSON file to write the figures to.")
_TEXT = flags.DEFINE_string("text", None, "File to write the compiled program to.")


def main(argv):
    """Compiles the step, and prints and writes its memory, work and time."""
    command_line.refuse_arguments(argv)
    devices, chip = find_devices(_TOPOLOGY.value, _SLICES.value)
    config = resolve(command_line.config_of(_CONFIG), num_devices=len(devices))
    for flag in (_OUT, _TEXT):
        if flag.value:
            command_line.make_folder_of(flag.value, flag.name)
    begin, computed = time.monotonic(), time.process_time()
    found = dry_run(config, devices, chip, _SLICES.value, keep=_write_text)
    spent = time.monotonic() - begin
    print(found.to_text())
    print(
        f"Compiled in {spent:.0f} s, {time.process_time() - computed:.0f} s of them "
        "on a processor."
    )
    if _OUT.value:
        out = epath.Path(_OUT.value)
        figures = {**found.to_json(), "compile_seconds": spent}
        out.write_text(json.dumps(figures, indent=2) + "\n")


def _write_text(text: str):
    if _TEXT.value:
        epath.Path(_TEXT.value).write_text(text)
