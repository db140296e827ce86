"""Measures a step of NP-DPO against DPO with LoRA of the same rank on the same maps.

`python benchmarks/dpo.py` times a transformer of width 512 with random weights on 16
users. Both read stored embeddings and reference log-probs; a last variant computes the
reference in the step. Each round runs every variant once, and ratios compare times of
the same round, so that they hold on a noisy machine. The peak of resident memory is
measured in a process that runs one variant alone. A table is written to `--out`.

`--trl_python=PYTHON` also runs the DPO trainer of Hugging Face TRL under a Python that
has trl, peft and PyTorch, on the same weights, pairs and reference (`trl_dpo.py`).
"""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Collection

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
# Otherwise a GPU has no memory left for the processes that this one starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
from absl import app, flags

from benchmarks.dpo_report import TRL, Measured, to_markdown
from benchmarks.dpo_variants import (
    Sizes,
    make_batch,
    make_steps,
)
from benchmarks.measures import in_turns, peak_memory
from benchmarks.trl_step import trl
from fsa.cost_model.flops import flops

_ROUNDS = flags.DEFINE_integer("rounds", 8, "Rounds of timing.", 1)
_OUT = flags.DEFINE_string("out", "benchmarks/results/dpo.md", "File of the table.")
_TRL = flags.DEFINE_string(
    "trl_python", "", "Python that has trl; TRL is left out if empty."
)
_WITHOUT = flags.DEFINE_multi_string("without", [], "Name of a step to leave out.")
_PEAK = flags.DEFINE_float(
    "peak_tflops", 0, "Peak of the chip, for MFU; no MFU if 0.", 0
)
_ONLY = flags.DEFINE_string("only", "", "Print the peak memory of this variant alone.")
_SIZES = {
    field.name: (flags.DEFINE_string if field.type is str else flags.DEFINE_integer)(
        field.name, field.default, "See `Sizes`."
    )
    for field in dataclasses.fields(Sizes)
}


def compiled(step: Callable, arguments: tuple) -> jax.stages.Compiled:
    """Compiles a step as training does, but without donated arguments."""
    return jax.jit(step).lower(*arguments).compile()


def peak(sizes: Sizes, name: str) -> int:
    """Measures the peak bytes of a step in this process, after a first step."""
    step, arguments = make_steps(sizes)[name]()
    program = compiled(step, arguments)
    jax.block_until_ready(program(*arguments))
    if jax.default_backend() != "cpu":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    return peak_memory(lambda: program(*arguments))


def peak_alone(sizes: Sizes, name: str) -> int:
    """Measures `peak` in a process that does nothing else."""
    fields = dataclasses.asdict(sizes).items()
    command = [sys.executable, __file__, f"--only={name}"]
    command += [f"--{field}={value}" for field, value in fields]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout)


def measure(
    sizes: Sizes, rounds: int, trl_python: str = "", without: Collection[str] = ()
) -> tuple[dict[str, Measured], str]:
    """Returns (name -> measurements, what TRL reports of itself if it ran)."""
    programs, result, said = {}, {}, ""
    for name, make in make_steps(sizes).items():
        if name in without:
            continue
        own_peak = peak_alone(sizes, name)
        step, arguments = make()
        program = compiled(step, arguments)
        needs = program.memory_analysis()
        result[name] = Measured(
            flops(step, *arguments, while_trips=1),
            needs.argument_size_in_bytes + needs.temp_size_in_bytes,
            own_peak,
        )
        programs[name] = (program, arguments)
    with contextlib.ExitStack() as stack:
        if trl_python:
            model, variables = sizes.make()
            batch = make_batch(sizes, model, variables)
            step, said = stack.enter_context(trl(sizes, variables, batch, trl_python))
            programs[TRL] = (step, ())
            result[TRL] = Measured(result[sizes.plain].flops, 0, 0)
        for name, seconds in in_turns(programs, rounds).items():
            result[name].seconds = seconds
    return result, said


def main(_):
    """Prints and saves the table."""
    sizes = Sizes(**{name: flag.value for name, flag in _SIZES.items()})
    if _ONLY.value:
        print(peak(sizes, _ONLY.value))
        return
    if not _TRL.value:
        print("TRL is left out; --trl_python names a Python that has it")
    table, said = measure(sizes, _ROUNDS.value, _TRL.value, _WITHOUT.value)
    text = to_markdown(sizes, table, said, _PEAK.value)
    print(text)
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)


if __name__ == "__main__":
    app.run(main)
