"""Measures what conditioning models of other libraries costs.

`taskset -c 0 python -m benchmarks.foreign_models` runs each model of `foreign_zoo.py`
on 8 users, one example each, through the bridge: with a scale, a low rank of 8 and
shifts, or with what `--modulation` names. Times are ratios to the unconditioned model:
each round runs all variants in turns, and its times are divided by that round's
unconditioned time. They count the processor time of this process, so they hold on a
machine with other work.
`--before=FOLDER` measures another copy of the package `fsa.conditioning` in the same
rounds. The tables are written to `--out`, and all numbers beside it as JSON.

"gradient" is that of the hypernetwork with frozen weights, against the gradient of a
gain of each input of the unconditioned model: a backward pass through all layers.
"""

import functools
import importlib.util
import json
import operator
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.foreign_zoo import MODELS
from fsa import conditioning

LATENT_DIM = 16
KINDS = ("forward", "gradient")
SCALE, LOW_RANK, SHIFT = "scale", "low_rank", "shift"
MODULATIONS = (f"{SCALE} + {LOW_RANK} + {SHIFT}", LOW_RANK, f"{SCALE} + {SHIFT}")


def load(folder: str):
    """Imports another copy of the package, under the name of its own."""
    init = pathlib.Path(folder, "__init__.py")
    spec = importlib.util.spec_from_file_location("conditioning_before", init)
    package = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = package
    spec.loader.exec_module(package)
    return package


def spec_of(package, model, modulation: str, rank: int) -> list:
    """Makes the spec of a model: kernels have all but `SHIFT`, which biases have."""
    names = modulation.split(" + ")
    made = {SCALE: package.scale(), LOW_RANK: package.low_rank(rank)}
    of_kernels = functools.reduce(
        operator.add, (each for name, each in made.items() if name in names)
    )
    spec = model.spec(of_kernels, package.shift())
    return [
        each for each in spec if SHIFT in names or each[1] is None or not each[1].shifts
    ]


def conditioned(package, model, modulation: str, rank: int):
    """Returns `(function of (hyper, params, x), hyper, modulate)` with z fixed."""
    spec = spec_of(package, model, modulation, rank)
    init, modulate = package.hypernet(spec, LATENT_DIM)
    hyper = jax.jit(init)(jax.random.key(3), model.params)
    # Not the identity, so that nothing can be optimised away.
    hyper = jax.tree.map(lambda a: a + 0.01, hyper)
    bridged = package.bridge(model.apply, strict=True)

    def one(hyper, params, z, x):
        return bridged(package.condition(params, modulate(hyper, z)), x)

    return one, hyper, modulate


def functions(example):
    """Returns the kinds of a run of a model `(learned, params, z, x) -> array`."""

    def forward(learned, params, z, x):
        return jax.vmap(example, (None, None, 0, 0))(learned, params, z, x)

    def loss(learned, params, z, x):
        return jnp.sum(forward(learned, params, z, x) ** 2)

    return dict(zip(KINDS, (forward, jax.grad(loss)), strict=True))


def plain(model):
    """The unconditioned model, whose `learned` is one gain for each input."""

    def one(gain, params, z, x):
        return model.apply(params, x * gain)

    return one, jnp.ones(model.x)


def compiled(fn, arguments) -> tuple:
    """Compiles a function; returns it, and the processor seconds that it took."""
    jax.clear_caches()
    begin = time.process_time()
    program = jax.jit(fn).lower(*arguments).compile()
    return program, time.process_time() - begin


def in_turns(programs: dict, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of one run of each program, in each round."""
    seconds = {name: [] for name in programs}
    repeats = {}
    for name, (program, arguments) in programs.items():
        jax.block_until_ready(program(*arguments))
        begin = time.process_time()
        jax.block_until_ready(program(*arguments))
        repeats[name] = max(1, round(0.01 / (time.process_time() - begin)))
    for _ in range(rounds):
        for name, (program, arguments) in programs.items():
            begin = time.process_time()
            for _ in range(repeats[name]):
                jax.block_until_ready(program(*arguments))
            seconds[name].append((time.process_time() - begin) / repeats[name])
    return seconds


def error(package, model, one, hyper, modulate, z, x) -> tuple[float, int]:
    """Returns the largest error against folding, relative, and how many are built."""
    got = jax.jit(jax.vmap(one, (None, None, 0, 0)))(hyper, model.params, z, x)

    def folded(z, x):
        return model.apply(
            package.fold(package.condition(model.params, modulate(hyper, z))), x
        )

    want = jax.jit(jax.vmap(folded))(z, x)
    first = package.condition(model.params, modulate(hyper, z[0]))
    built = len(package.report(model.apply, first, x[0]).materialized)
    return float(jnp.abs(got - want).max() / jnp.abs(want).max()), built


def measure(
    name: str,
    width: int,
    packages: dict,
    modulation: str,
    rank: int,
    users: int,
    rounds: int,
) -> dict:
    """Measures one model with all packages."""
    model = MODELS[name](width)
    x = jax.random.normal(jax.random.key(1), (users, *model.x))
    z = jax.random.normal(jax.random.key(2), (users, LATENT_DIM))
    variants = {"plain": (*plain(model), None)}
    row = {"model": name, "width": width, "modulation": modulation, "rank": rank}
    for label, package in packages.items():
        variants[label] = conditioned(package, model, modulation, rank)
    row["error"], row["built"] = error(
        packages["after"], model, *variants["after"], z, x
    )
    for kind in KINDS:
        programs = {}
        for label, (one, learned, _) in variants.items():
            arguments = (learned, model.params, z, x)
            program, seconds = compiled(functions(one)[kind], arguments)
            programs[label] = program, arguments
            row[f"{kind} compile {label}"] = seconds
            memory = program.memory_analysis().temp_size_in_bytes
            row[f"{kind} memory {label}"] = memory
        seconds = in_turns(programs, rounds)
        row[f"{kind} milliseconds"] = 1e3 * statistics.median(seconds["plain"])
        for label in packages:
            pairs = zip(seconds[label], seconds["plain"], strict=True)
            ratios = [a / b for a, b in pairs]
            low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            row[f"{kind} {label}"] = middle
            row[f"{kind} {label} quartiles"] = [low, high]
        for label in packages:
            for what in ("compile", "memory"):
                base = max(row[f"{kind} {what} plain"], 1e-9)
                row[f"{kind} {what} {label} ratio"] = (
                    row[f"{kind} {what} {label}"] / base
                )
    return row


def to_markdown(rows: list[dict], labels: list[str]) -> str:
    """Formats the tables; where two packages were measured, as `before -> after`."""

    def cell(row, key, digits=2):
        return " → ".join(f"{row[key.format(label)]:.{digits}f}" for label in labels)

    head = ["model", "width", "ms", "forward", "gradient"]
    head += ["compile, forward", "compile, gradient", "memory, forward"]
    head += ["memory, gradient", "error", "built"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [row["model"], str(row["width"]), f"{row['forward milliseconds']:.2f}"]
        cells += [cell(row, kind + " {}") for kind in KINDS]
        for what in ("compile", "memory"):
            for kind in KINDS[:2]:
                cells.append(cell(row, f"{kind} {what} " + "{} ratio"))
        cells += [f"{row['error']:.0e}", str(row["built"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(_):
    """Measures the chosen models and writes the tables."""
    flag = flags.FLAGS
    packages = {"after": conditioning}
    if flag.before:
        packages = {"before": load(flag.before), **packages}
    names = flag.model or list(MODELS)
    rows, out = [], pathlib.Path(flag.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    for width in map(int, flag.width):
        for name in names:
            row = measure(
                name,
                width,
                packages,
                flag.modulation,
                flag.rank,
                flag.users,
                flag.rounds,
            )
            rows.append(row)
            print(to_markdown([row], list(packages)).splitlines()[-1], flush=True)
            out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    head = (
        f"jax {jax.__version__}, one thread of {jax.devices()[0].device_kind}, "
        f"{flag.users} users, {flag.modulation}, rank {flag.rank}, "
        f"{flag.rounds} rounds in turns"
    )
    out.write_text(f"{head}\n\n{to_markdown(rows, list(packages))}\n")


if __name__ == "__main__":
    flags.DEFINE_string("before", None, "Folder of another copy of the package.")
    flags.DEFINE_multi_string("model", None, "Models, by name; all without it.")
    flags.DEFINE_list("width", ["128"], "Widths.")
    flags.DEFINE_enum("modulation", MODULATIONS[0], MODULATIONS, "Of each parameter.")
    flags.DEFINE_integer("rank", 8, "Rank of the low rank.", 1)
    flags.DEFINE_integer("users", 8, "Users, of one example each.", 1)
    flags.DEFINE_integer("rounds", 15, "Rounds of timing.", 1)
    flags.DEFINE_string("out", "benchmarks/results/foreign_models.md", "File.")
    app.run(main)
