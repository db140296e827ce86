"""Measures the cost of conditioning a transformer, as ratios to the unconditioned one.

`taskset -c 0 python benchmarks/conditioning.py` times, on one core, 4 layers of width
512 on 16 users x 64 tokens, then 2 layers for several numbers of users (with the same
number of tokens in all), widths and ranks. Each round runs every variant, and its times
are divided by that round's unconditioned time, so that ratios hold on a noisy machine.
Tables are written to `--out`, and a picture beside it.
"""

import dataclasses
import math
import pathlib
import re
import sys
from collections.abc import Iterable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.conditioning_report import KINDS, Measured, Table, draw, to_markdown
from benchmarks.conditioning_variants import (
    BOTH,
    FIXED_BASIS,
    MATERIALISED,
    PLAIN,
    RANK,
    SCALE,
    Sizes,
    variants,
)
from benchmarks.measures import in_turns

# Sweeps leave out variants that build more bytes of weights for all users.
MOST_BYTES = 1e9


def sweeps(base: Sizes) -> dict[str, list[Sizes]]:
    """Returns the sizes of each sweep; all numbers of users have as many tokens."""
    total = base.users * base.tokens
    return {
        "users": [
            dataclasses.replace(base, users=n, tokens=total // n)
            for n in (1, 4, 16, 64, 256)
        ],
        "width": [dataclasses.replace(base, width=n) for n in (128, 256, 512, 1024)],
        "rank": [dataclasses.replace(base, rank=n) for n in (1, 2, 4, 8, 16, 32)],
    }


def wanted(sizes: Sizes, field: str | None = None) -> list[str]:
    """Names the variants that the sweep over `field` measures; all without a field."""
    if field == "rank":
        return [PLAIN, RANK, f"{BOTH}, bridge"]
    names = [PLAIN, "residual FiLM", SCALE, "scale, bridge", RANK, f"{BOTH}, bridge"]
    if field is None:
        names += [FIXED_BASIS, f"{BOTH}, {MATERIALISED}"]
    bytes_of_weights = sizes.users * sizes.layers * 12 * 4 * sizes.width**2
    if field != "width" and bytes_of_weights <= MOST_BYTES:
        names.append(f"scale, {MATERIALISED}")
    return names


def copies(text: str, sizes: Sizes) -> int:
    """Returns the bytes of the largest array with a weight for each user, 0 for none.

    An array counts if its axes are the users and those of a weight, in any order, or
    with the users merged into one of them. Arrays of a weight's own shape do not count.
    """
    d, users = sizes.width, sizes.users
    weights = {(d, 3 * d), (d, d), (d, 4 * d)}
    each = {tuple(sorted((users, *shape))) for shape in weights}
    each |= {tuple(sorted((users * a, b))) for a, b in weights}
    each |= {tuple(sorted((a, users * b))) for a, b in weights}
    found = {
        tuple(sorted(n for n in map(int, dims.split(",")) if n > 1))
        for dims in re.findall(r"f32\[([\d,]+)\]", text)
    }
    return max((4 * math.prod(shape) for shape in found & each - weights), default=0)


def measure(sizes: Sizes, names: Iterable[str], rounds: int) -> Table:
    """Compiles the named variants and times them in turns."""
    programs, result = {}, {}
    for name, (fn, arguments) in variants(sizes).items():
        if name not in names:
            continue

        def loss(*arguments, fn=fn):
            return jnp.sum(fn(*arguments) ** 2)

        compiled = {
            kind: jax.jit(f).lower(*arguments).compile()
            for kind, f in zip(KINDS, (fn, jax.grad(loss)), strict=True)
        }
        programs[name] = {k: (p, arguments) for k, p in compiled.items()}
        result[name] = Measured(
            {},
            {k: p.memory_analysis().temp_size_in_bytes for k, p in compiled.items()},
            {k: p.cost_analysis()["flops"] for k, p in compiled.items()},
            {k: copies(p.as_text(), sizes) for k, p in compiled.items()},
        )
    for kind in KINDS:
        seconds = in_turns({n: p[kind] for n, p in programs.items()}, rounds)
        for name in programs:
            result[name].seconds[kind] = seconds[name]
    return result


def orders_of_a_gradient(sizes: Sizes, rounds: int) -> dict[str, list[float]]:
    """Times the gradient of a factor `[4 width, rank]` in three orders.

    x `[users, tokens, 4 width]` are activations, g `[users, tokens, rank]` is the
    cotangent of their product with the factor.
    """
    shape = (sizes.users, sizes.tokens)
    x = jax.random.normal(jax.random.key(0), (*shape, 4 * sizes.width))
    g = jax.random.normal(jax.random.key(1), (*shape, sizes.rank))
    orders = {
        "`g.T @ x`, rank first": lambda g, x: jnp.einsum("utr,utd->rd", g, x),
        "`x.T @ g`, rank last": lambda g, x: jax.lax.dot_general(
            x, g, (((0, 1), (0, 1)), ((), ()))
        ),
        "`(g.T @ x).T`, which XLA rewrites": lambda g, x: jnp.transpose(
            jax.lax.dot_general(g, x, (((0, 1), (0, 1)), ((), ())))
        ),
    }
    return in_turns({name: (jax.jit(f), (g, x)) for name, f in orders.items()}, rounds)


def run(base: Sizes, points: dict[str, list[Sizes]], rounds: int, out: pathlib.Path):
    """Measures all variants; writes the tables to `out` and the picture beside it."""
    table = measure(base, wanted(base), rounds)
    swept = {
        field: {
            getattr(sizes, field): measure(sizes, wanted(sizes, field), -(-rounds // 2))
            for sizes in row
        }
        for field, row in points.items()
    }
    orders = orders_of_a_gradient(base, 3 * rounds)
    picture = out.with_suffix(".png")
    head = f"jax {jax.__version__}, {jax.devices()[0].device_kind}, --rounds={rounds}"
    text = to_markdown(head, base, table, swept, orders, picture.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    draw(swept, picture)


def main(_):
    """Runs the benchmark and prints its tables."""
    base, out = Sizes(), pathlib.Path(flags.FLAGS.out)
    run(base, sweeps(dataclasses.replace(base, layers=2)), flags.FLAGS.rounds, out)
    print(out.read_text())


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 8, "Rounds of timing; half in sweeps.", 1)
    flags.DEFINE_string(
        "out", "benchmarks/results/conditioning.md", "File of the tables."
    )
    app.run(main)
