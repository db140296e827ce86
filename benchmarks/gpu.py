"""Tokens/s and MFU of NP-DPO on one accelerator, against DPO and against its peak.

`python benchmarks/gpu.py` times steps of DPO with LoRA and of NP-DPO on language models
with the shapes of SmolLM2-135M and Qwen2.5-1.5B and random weights, in bfloat16. The
programs run in turns, so that their ratios are reliable. Two peaks are given: the rate
of a large matrix product on this chip, and the rate that its vendor states. A forward
pass is timed as well: if its MFU is low, the language model limits the step; otherwise
the gradient or the code around it does. A table is written to `--out`. More tokens a
step (`--users`, `--pairs`) raise the MFU, as far as memory allows.
"""

import dataclasses
import pathlib
import statistics
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.dpo_variants import Sizes, log_probs, make_steps
from benchmarks.language_model import MODELS
from benchmarks.measures import in_turns, paired_ratio
from fsa.cost_model.flops import flops, peak_flops

FORWARD = "forward pass alone"


class Timing(NamedTuple):
    """The times and operations of one program.

    Attributes:
      name: the program's name.
      seconds: seconds of a run, in each round.
      done: operations that are carried out.
      needed: fewest operations: those of one forward pass of the language model, and
        as many for the gradient by activations if there is one.
    """

    name: str
    seconds: list[float]
    done: int
    needed: int


def matmul_peak(size: int, rounds: int, turns: int = 10) -> float:
    """Returns the operations a second of square bfloat16 products in the best round."""
    w = jnp.eye(size, dtype=jnp.bfloat16)

    def products(x):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=turns)[0]

    x = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    seconds = in_turns({"": (jax.jit(products), (x,))}, rounds)[""]
    return 2 * size**3 * turns / min(seconds)


def measure(sizes: Sizes, rounds: int) -> list[Timing]:
    """Times a forward pass, DPO and the variants of NP-DPO."""
    steps = make_steps(sizes)
    names = (sizes.plain, sizes.film, sizes.low_rank)
    made = {name: steps[name]() for name in names}
    model, base = sizes.make()
    _, (_, (_, batch), _) = made[sizes.plain]

    def forward(variables, responses):
        return log_probs(model, variables, responses)

    made = {FORWARD: (forward, (base, batch.responses)), **made}
    once = flops(forward, base, batch.responses)
    programs = {
        name: (jax.jit(fn).lower(*arguments).compile(), arguments)
        for name, (fn, arguments) in made.items()
    }
    return [
        Timing(
            name,
            seconds,
            done=flops(made[name][0], *made[name][1]),
            needed=once if name == FORWARD else 2 * once,
        )
        for name, seconds in in_turns(programs, rounds).items()
    ]


def to_markdown(
    measured: dict[str, tuple[Sizes, list[Timing]]], measured_peak: float
) -> str:
    """Returns the tables as Markdown."""
    device = jax.devices()[0]
    stated = peak_flops(device.device_kind)
    of_vendor = "unknown" if stated is None else f"{stated / 1e12:,.0f} TFLOP/s"
    lines = [
        "# NP-DPO on an accelerator",
        "",
        f"jax {jax.__version__}, {device.device_kind}: {measured_peak / 1e12:,.3g} "
        f"TFLOP/s measured in bfloat16 products, {of_vendor} by its vendor. Medians; "
        "ratios are to the DPO step of the same round. MFU counts two forward passes "
        "of the language model a step, the least that its loss and the gradient by "
        "activations need; TFLOP counts all operations, also those of conditioning, "
        "encoder and rematerialisation.",
    ]
    names = ["", "ms", "ratio", "tokens/s", "TFLOP", "MFU, measured peak"]
    names += [] if stated is None else ["MFU, stated peak"]
    for model, (sizes, timings) in measured.items():
        (plain,) = (each.seconds for each in timings if each.name == sizes.plain)
        lines += ["", f"**{model}**: {sizes.tokens:,} tokens a step, {sizes}", ""]
        lines += [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
        for each in timings:
            seconds = statistics.median(each.seconds)
            cells = [each.name, f"{1e3 * seconds:,.1f}"]
            cells.append(f"{paired_ratio(each.seconds, plain):.3f}")
            cells += [f"{sizes.tokens / seconds:,.0f}", f"{each.done / 1e12:.3g}"]
            for peak in (measured_peak, stated):
                if peak is not None:
                    cells.append(f"{each.needed / seconds / peak:.1%}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(_):
    """Prints and saves the table."""
    shared = Sizes(
        users=flags.FLAGS.users,
        pairs=flags.FLAGS.pairs,
        prompt=flags.FLAGS.prompt,
        response=flags.FLAGS.response,
        rank=flags.FLAGS.rank,
        dtype="bfloat16",
        remat=flags.FLAGS.remat,
    )
    peak = matmul_peak(flags.FLAGS.matmul, flags.FLAGS.rounds)
    measured = {}
    for name in flags.FLAGS.models:
        sizes = dataclasses.replace(shared, model=name)
        measured[name] = sizes, measure(sizes, flags.FLAGS.rounds)
    text = to_markdown(measured, peak)
    print(text)
    out = pathlib.Path(flags.FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)


if __name__ == "__main__":
    flags.DEFINE_list("models", [*MODELS], "Shapes of language models.")
    flags.DEFINE_integer("users", 4, "Users of a batch.", 1)
    flags.DEFINE_integer("pairs", 2, "Pairs of each user.", 1)
    flags.DEFINE_integer("prompt", 256, "Tokens of a prompt.", 1)
    flags.DEFINE_integer("response", 256, "Tokens of a response.", 1)
    flags.DEFINE_integer("rank", 8, "Rank of LoRA and of low-rank conditioning.", 1)
    flags.DEFINE_string("remat", "", "Rematerialisation, see Sizes; by default none.")
    flags.DEFINE_integer("matmul", 8192, "Size of the product for the peak.", 1)
    flags.DEFINE_integer("rounds", 10, "Number of timing rounds.", 1)
    flags.DEFINE_string("out", "benchmarks/results/gpu.md", "File of the tables.")
    app.run(main)
