"""Writes the measurements of `conditioning.py` as tables and a picture."""

import dataclasses
import pathlib
import statistics

from matplotlib.figure import Figure

from benchmarks.conditioning_variants import (
    BOTH,
    FIXED_BASIS,
    MATERIALISED,
    PLAIN,
    RANK,
    SCALE,
    Sizes,
)
from benchmarks.measures import paired_ratio

KINDS = ("forward", "gradient")
# Lines of the picture: colour by modulation, dashed for the bridge.
STYLES = {
    "residual FiLM": "C7s-",
    SCALE: "C0o-",
    "scale, bridge": "C0^--",
    RANK: "C1o-",
    f"{BOTH}, bridge": "C1^--",
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of one variant; each dict has "forward" and "gradient".

    Attributes:
      seconds: time of each round.
      memory: temporary bytes of the compiled program.
      flops: floating point operations of the compiled program.
      copies: bytes of its largest users x weight array.
    """

    seconds: dict[str, list[float]]
    memory: dict[str, int]
    flops: dict[str, float]
    copies: dict[str, int]


Table = dict[str, Measured]


def ratio(table: Table, name: str, kind: str, to: str = PLAIN) -> float:
    """Returns the median over rounds of one variant's time divided by another's."""
    return paired_ratio(table[name].seconds[kind], table[to].seconds[kind])


def rows(table: Table, label: str = "") -> list[str]:
    """Formats one row for each variant; `label` is its first cell, if any."""
    lines = []
    for name, m in table.items():
        cells = [label] if label else []
        cells.append(name)
        for kind in KINDS:
            cells.append(f"{1e3 * statistics.median(m.seconds[kind]):.0f}")
            cells.append(f"{ratio(table, name, kind):.2f}")
        cells.append(" / ".join(f"{m.memory[kind] / 1e6:.1f}" for kind in KINDS))
        cells.append(" / ".join(f"{m.flops[kind] / 1e9:.2f}" for kind in KINDS))
        cells.append(" / ".join(f"{m.copies[kind] / 1e6:.1f}" for kind in KINDS))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def header(*first: str) -> list[str]:
    """Formats the two lines above `rows`."""
    names = [*first, "forward, ms", "ratio", "gradient, ms", "ratio"]
    names += ["temporary memory, MB", "GFLOP", "users x weight, MB"]
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def limits(table: Table) -> list[str]:
    """Formats the ratios that have a limit, each with the limit."""
    naive = f"scale, {MATERIALISED}"

    def memory(name):
        return table[name].memory["forward"] / table[PLAIN].memory["forward"]

    found = [
        ("forward of scale, explicit", ratio(table, SCALE, "forward"), 1.10),
        ("forward of scale, bridge", ratio(table, "scale, bridge", "forward"), 1.10),
        (f"forward of {BOTH}, explicit", ratio(table, RANK, "forward"), 1.20),
        (f"forward of {BOTH}, bridge", ratio(table, f"{BOTH}, bridge", "forward"), 1.2),
        ("temporary memory of the forward of scale", memory(SCALE), 1.15),
    ]
    if naive in table:
        of_naive = ratio(table, SCALE, "gradient", to=naive)
        found.append((f"gradient of scale, to {naive}", of_naive, 0.35))
    lines = ["| to unconditioned | measured | at most |", "|---|---|---|"]
    return lines + [f"| {n} | {value:.2f} | {most:.2f} |" for n, value, most in found]


def gradient_of_factors(
    base: Sizes, table: Table, orders: dict[str, list[float]]
) -> list[str]:
    """Explains what the gradient of a low-rank part spends its time on."""
    tokens, wide = base.users * base.tokens, 4 * base.width
    flops = table[RANK].flops["gradient"] / table[SCALE].flops["gradient"]
    lines = [
        f"With {flops - 1:.1%} more FLOPs than the scale alone, the gradient of scale "
        f"and rank takes {ratio(table, RANK, 'gradient', to=SCALE):.2f} of its time; "
        "with the learned basis held fixed, "
        f"{ratio(table, FIXED_BASIS, 'gradient', to=SCALE):.2f}. The rest is the "
        "gradient of the basis, a product of activations x and cotangents g over all "
        "tokens. XLA's fast products on CPU want the contracted axis last in the "
        "left operand; it transposes that operand if not, and rewrites a transposed "
        "product as the product of swapped operands, which leaves the fast path. "
        f"For x `[{tokens}, {wide}]` and g `[{tokens}, {base.rank}]`:",
        "",
        "| order | ms |",
        "|---|---|",
    ]
    for name, seconds in orders.items():
        lines.append(f"| {name} | {1e3 * statistics.median(seconds):.2f} |")
    return [
        *lines,
        "",
        "The factor that meets x used to have the last order. It is now stored with "
        "its rank first, behind an optimization barrier, and has the first order "
        "(`products.py`). The other factor has the second: JAX writes the cotangent of "
        "a product first, which for this factor is as large as the activations, so the "
        "copy of it remains. Only a derivative rule of our own would change the order, "
        "at the cost of forward mode (`jax.custom_vjp`) or of a new primitive. The "
        "fixed basis pays for passes over activations that count no FLOPs: each "
        "low-rank product is written and read once more in the forward pass, and once "
        "more in the backward pass.",
    ]


def to_markdown(
    head: str,
    base: Sizes,
    table: Table,
    swept: dict[str, dict[int, Table]],
    orders: dict[str, list[float]],
    picture: str,
) -> str:
    """Formats the complete file."""
    lines = [
        "# What conditioning costs",
        "",
        f"{head}. Ratios are to the unconditioned model in the same round, the median "
        "over rounds. Memory, GFLOP and users x weight are those of the compiled "
        "forward / gradient; users x weight is the largest array that holds a weight "
        "for each user. The gradient is that of the hypernetwork or of the films; for "
        "the unconditioned model, that of a factor of its inputs.",
        "",
        f"{base}:",
        "",
        *header("variant"),
        *rows(table),
        "",
        *limits(table),
        "",
        "## The gradient of the low-rank part",
        "",
        *gradient_of_factors(base, table, orders),
        "",
        "## Sweeps",
        "",
        f"![ratios over {', '.join(swept)}]({picture})",
        "",
        f"With 2 layers, and {base.users * base.tokens} tokens in all for any number "
        "of users. Weights built per user are left out if they alone take over a "
        "gigabyte, and in the sweeps over widths and ranks, where they take too long.",
    ]
    for field, constants in swept.items():
        lines += ["", *header(field, "variant")]
        for value, at in constants.items():
            lines += rows(at, str(value))
    return "\n".join(lines) + "\n"


def draw(swept: dict[str, dict[int, Table]], path: pathlib.Path) -> None:
    """Draws the ratios of each sweep, without materialised weights (off the scale)."""
    figure = Figure(figsize=(4 * len(swept), 6.4), layout="constrained")
    grid = figure.subplots(len(KINDS), len(swept), sharey="row", squeeze=False)
    for column, (field, measured) in zip(grid.T, swept.items(), strict=True):
        for axes, kind in zip(column, KINDS, strict=True):
            for name, style in STYLES.items():
                at = [value for value, table in measured.items() if name in table]
                y = [ratio(measured[value], name, kind) for value in at]
                axes.plot(at, y, style, label=name, markersize=5)
            axes.axhline(1, color="0.6", linewidth=1, zorder=0)
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(measured), list(map(str, measured)))
            axes.spines[["top", "right"]].set_visible(False)
        column[-1].set_xlabel(field)
    for axes, kind in zip(grid[:, 0], KINDS, strict=True):
        axes.set_ylabel(f"{kind}, time to unconditioned")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(path, dpi=150)
