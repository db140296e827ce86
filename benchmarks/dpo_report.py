"""Tables of the measurements of `dpo.py`."""

import dataclasses
import statistics

import jax

from benchmarks.dpo_variants import Sizes
from benchmarks.measures import paired_ratio

TRL = "TRL"


@dataclasses.dataclass
class Measured:
    """Measurements of one variant.

    Attributes:
      flops: operations of the matrix products of a step.
      memory: bytes of the program's arguments and temporaries; 0 if unknown.
      peak: most bytes that a process holds during a step if it runs nothing else.
      seconds: seconds of a step in each round.
    """

    flops: int
    memory: int
    peak: int
    seconds: list[float] = dataclasses.field(default_factory=list)


def limits(sizes: Sizes, table: dict[str, Measured]) -> list[str]:
    """Returns the lines of a table of promised and measured ratios."""
    plain = table[sizes.plain]

    def time(name):
        return paired_ratio(table[name].seconds, plain.seconds)

    def bound(name, value, limit):
        return f"| {name} | {value:.2f} | {limit} |"

    lines = ["| | measured | promised |", "|---|---|---|"]
    promised = {
        sizes.film: (1.05, 1.10),
        sizes.low_rank: (1.10, 1.10),
        sizes.given: (1.05, 1.05),
    }
    for name, (slower, larger) in promised.items():
        if name not in table:
            continue
        own, most = table[name], f"at most {larger:.2f}"
        lines += [
            bound(f"time of {name}", time(name), f"at most {slower:.2f}"),
            bound(f"memory of {name}", own.memory / plain.memory, most),
            bound(f"peak of {name}", own.peak / plain.peak, most),
        ]
    if sizes.computed in table:
        saved = 1 - paired_ratio(
            table[sizes.low_rank].seconds, table[sizes.computed].seconds
        )
        name = "share of the step that a stored reference saves"
        lines.append(bound(name, saved, "at least 0.20"))
    if TRL in table:
        faster = paired_ratio(table[TRL].seconds, plain.seconds)
        lines.append(bound(f"tokens/s of {sizes.plain}, to TRL's", faster, "aim: 1.50"))
    return lines


def to_markdown(
    sizes: Sizes, table: dict[str, Measured], said: str, peak_tflops: float = 0
) -> str:
    """Returns the text of the file."""
    plain = table[sizes.plain]
    names = ["step", "ms", "ratio", "tokens/s", "GFLOP"]
    names += ["program, MB", "ratio", "peak, MB", "ratio"]
    names += ["MFU"] if peak_tflops else []
    lines = [
        "# What a step of NP-DPO costs",
        "",
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, "
        f"--rounds={len(plain.seconds)}, {sizes}: {sizes.tokens:,} tokens a step. "
        "Ratios are to the first row, in the same round, the median over rounds. "
        "GFLOP are those of matrix products; the program's memory is that of its "
        "arguments and temporaries, the peak that of a process which runs it alone.",
        "",
        f"| {' | '.join(names)} |",
        "|" + "---|" * len(names),
    ]

    def memory(own, first):
        if not own:
            return ["-", "-"]
        return [f"{own / 1e6:,.0f}", f"{own / first:.2f}"]

    for name, own in table.items():
        seconds = statistics.median(own.seconds)
        cells = [name, f"{1e3 * seconds:,.0f}"]
        cells.append(f"{paired_ratio(own.seconds, plain.seconds):.2f}")
        cells += [f"{sizes.tokens / seconds:,.0f}", f"{own.flops / 1e9:,.1f}"]
        cells += memory(own.memory, plain.memory) + memory(own.peak, plain.peak)
        if peak_tflops:
            cells.append(f"{own.flops / seconds / peak_tflops / 1e12:.1%}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *limits(sizes, table)]
    if said:
        lines += ["", f"{TRL}: {said}"]
    return "\n".join(lines) + "\n"
