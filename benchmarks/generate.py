"""Measures generation for 16 different users against one model for all.

`python benchmarks/generate.py` generates with random weights of width 512 and writes a
table to `--out`. Each round runs every variant once, and ratios compare times of the
same round, so that they hold on a noisy machine. `taskset -c 0` before the command
restricts it to one core.
"""

import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.language_model import LATENT_DIM, OUTPUTS, RandomLanguageModel
from benchmarks.measures import paired_ratio
from fsa.conditioning import hypernet, user_axes
from fsa.language.generation import decoder, generate, user_decoder
from fsa.language.transformer import with_biases
from fsa.models.policy import shifted, spec_of

PLAIN = "unconditioned"
MODULATIONS = ("scale + shift", "low_rank(8)")


@dataclasses.dataclass(frozen=True)
class Sizes(RandomLanguageModel):
    """Sizes of the model and of a batch; every user has one example."""

    users: int = 16
    prompt: int = 64
    new: int = 64
    layers: int = 8


def programs(sizes: Sizes) -> dict[str, Callable]:
    """Returns name -> compiled function, without arguments, that generates for all."""
    model, variables = sizes.make()
    z = jax.random.normal(jax.random.key(1), (sizes.users, LATENT_DIM))
    prompts = jax.random.randint(
        jax.random.key(2), (sizes.users, sizes.prompt), 0, sizes.vocab
    )

    def compiled(make, *arguments):
        def run(prompts, *arguments):
            return generate(
                make(*arguments),
                prompts,
                jnp.ones_like(prompts, bool),
                jax.random.key(3),
                max_new_tokens=sizes.new,
            )

        program = jax.jit(run).lower(prompts, *arguments).compile()
        return lambda: jax.block_until_ready(program(prompts, *arguments))

    def conditioned(modulation):
        modulations = [(name, modulation) for name in OUTPUTS]
        biased, base = with_biases(model, variables, shifted(modulations))
        init, modulate = hypernet(spec_of(modulations), LATENT_DIM)
        # Not zero, so that nothing can be optimised away.
        hyper = jax.tree.map(lambda a: a + 0.01, init(jax.random.key(4), base))
        axes = user_axes(hyper)
        modulations = jax.vmap(modulate, (None, 0), axes)(hyper, z)
        return compiled(
            lambda base, modulations: user_decoder(biased, base, modulations, axes),
            base,
            modulations,
        )

    plain = compiled(lambda variables: decoder(model, variables), variables)
    return {PLAIN: plain} | {name: conditioned(name) for name in MODULATIONS}


def measure(sizes: Sizes, rounds: int) -> dict[str, tuple[float, float]]:
    """Returns name -> medians of (tokens/s, ratio to the unconditioned time)."""
    runs = programs(sizes)
    seconds = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {
        name: (
            sizes.users * sizes.new / statistics.median(own),
            paired_ratio(own, seconds[PLAIN]),
        )
        for name, own in seconds.items()
    }


def main(_):
    """Prints and saves the table."""
    sizes = Sizes()
    lines = [
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {sizes}",
        "",
        "| | tokens/s | time, ratio |",
        "|---|---|---|",
    ]
    for name, (rate, ratio) in measure(sizes, flags.FLAGS.rounds).items():
        lines.append(f"| {name} | {rate:,.0f} | {ratio:.2f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    out = pathlib.Path(flags.FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 10, "Rounds of timing.", 1)
    flags.DEFINE_string("out", "benchmarks/results/generate.md", "File of the table.")
    app.run(main)
