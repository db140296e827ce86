"""How throughput changes with size: of NP-BTL steps, and of NP-DPO steps.

`python benchmarks/scale.py` times training steps with one size changed at a time. The
points of a curve run in turns, so that other work on the machine slows all of them;
figures are medians over rounds. A table is written to `--out`, and the curves beside it
as .png.
"""

import dataclasses
import pathlib
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from benchmarks import dpo_variants
from benchmarks.measures import in_turns
from fsa.data.dataset import Dataset
from fsa.data.tasks.people import CHOICES, People
from fsa.data.tasks.task import TEST, TRAIN, VALID
from fsa.data.users import UserTable
from fsa.models.reward import RewardModel
from fsa.training import reward_loss
from fsa.training.runner import stack_examples
from fsa.training.step import init_state, make_optimizer, make_step

# Steps of a call of NP-BTL; with a single one, dispatch would take most of the time.
STEPS = 10


@dataclasses.dataclass(frozen=True)
class Btl:
    """Sizes of a step of NP-BTL; `context` is the most context choices of a user."""

    batch: int = 64
    users: int = 1000
    context: int = 10
    targets: int = 10
    features: int = 64
    hidden: int = 64
    items: int = 1000


@dataclasses.dataclass(frozen=True)
class Dpo:
    """Sizes of a step of NP-DPO; `tokens` counts a prompt with its response."""

    tokens: int = 64
    users: int = 4
    pairs: int = 2
    width: int = 128
    layers: int = 2
    vocab: int = 1024


class Curve(NamedTuple):
    """A curve, along which one size changes.

    Attributes:
      sizes: values of all other fields.
      field: name of the field that changes.
      values: its values.
    """

    sizes: Btl | Dpo
    field: str
    values: Sequence[int]


class Point(NamedTuple):
    """A point of a curve: its size, seconds of a step, choices or tokens a second."""

    value: int
    seconds: float
    rate: float


CURVES = (
    Curve(Btl(), "batch", (16, 64, 256, 1024)),
    Curve(Btl(), "users", (100, 1000, 10_000, 100_000)),
    Curve(Btl(), "context", (5, 10, 20, 50)),
    Curve(Dpo(), "tokens", (32, 64, 128, 256, 512)),
    Curve(Dpo(), "users", (1, 2, 4, 8, 16)),
)


def people(sizes: Btl) -> People:
    """Makes random users with as many choices as an episode needs."""
    rng = np.random.default_rng(0)

    def table(users):
        count = sizes.context + sizes.targets
        chosen, rejected = rng.integers(0, sizes.items, (2, users, count), np.int32)
        nothing = np.zeros((users, 0))
        return UserTable.of(
            list(map(str, range(users))),
            [0] * users,
            chosen=chosen,
            rejected=rejected,
            items=nothing,
            values=nothing,
        )

    numbers = tuple(map(str, range(sizes.items)))
    data = Dataset(
        features=rng.standard_normal((sizes.items, sizes.features), np.float32),
        item_ids=numbers,
        texts=numbers,
        prompts=("",),
        item_prompt=np.zeros(sizes.items, np.int32),
        groups=("all",),
        users={TRAIN: table(sizes.users), VALID: table(1), TEST: table(1)},
    )
    return People(
        data,
        batch_size=sizes.batch,
        max_context=sizes.context,
        num_targets=sizes.targets,
        test_context=sizes.context,
        test_targets=sizes.targets,
        train_on=CHOICES,
    )


def btl_call(sizes: Btl) -> tuple[Callable, tuple, int, int]:
    """Returns (a call, its arguments, its steps, target choices of a step)."""
    task = people(sizes)
    model = RewardModel(hidden=sizes.hidden, latent_dim=8)
    loss = reward_loss.make_loss(model, task, objective="ml", num_samples=4, beta=1.0)
    optimizer = make_optimizer(learning_rate=1e-3, steps=1000, warmup_steps=20)
    step = make_step(loss, optimizer)
    state = init_state(
        reward_loss.init_variables(model, task, jax.random.key(0)), optimizer
    )
    own = np.arange(sizes.batch, dtype=np.int32)
    steps = [reward_loss.make_examples(task, i, own) for i in range(STEPS)]

    def call(state, constants, examples, key):
        return jax.lax.scan(lambda s, x: step(s, (constants, x), key), state, examples)

    arguments = (state, task.constants, stack_examples(steps), jax.random.key(1))
    return call, arguments, STEPS, sizes.batch * sizes.targets


def dpo_call(sizes: Dpo) -> tuple[Callable, tuple, int, int]:
    """Returns (a call, its arguments, its steps, tokens of a step)."""
    half = sizes.tokens // 2
    own = dpo_variants.Sizes(
        users=sizes.users,
        pairs=sizes.pairs,
        prompt=sizes.tokens - half,
        response=half,
        width=sizes.width,
        layers=sizes.layers,
        vocab=sizes.vocab,
    )
    step, arguments = dpo_variants.make_steps(own)[own.low_rank]()
    return step, arguments, 1, own.tokens


def measure(curve: Curve, rounds: int) -> list[Point]:
    """Times the points of a curve in turns."""
    programs, per_call = {}, {}
    for value in curve.values:
        sizes = dataclasses.replace(curve.sizes, **{curve.field: value})
        make = btl_call if isinstance(sizes, Btl) else dpo_call
        call, arguments, steps, items = make(sizes)
        program = jax.jit(call).lower(*arguments).compile()
        programs[value] = (program, arguments)
        per_call[value] = steps, items
    points = []
    for value, seconds in in_turns(programs, rounds).items():
        steps, items = per_call[value]
        of_step = statistics.median(seconds) / steps
        points.append(Point(value, of_step, items / of_step))
    return points


def title(curve: Curve) -> str:
    """Returns the title of a curve."""
    kind = type(curve.sizes).__name__.upper()
    unit = {"BTL": "choices/s", "DPO": "tokens/s"}[kind]
    return f"NP-{kind}: {unit} by {curve.field}"


def to_markdown(measured: Sequence[tuple[Curve, list[Point]]], rounds: int) -> str:
    """Returns the tables as Markdown."""
    lines = [
        "# How throughput changes with size",
        "",
        f"jax {jax.__version__}, {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}, --rounds={rounds}; medians. Each table "
        "changes one size of those above it. NP-BTL counts target choices.",
    ]
    for curve, points in measured:
        lines += [
            "",
            f"**{title(curve)}**, else {curve.sizes}",
            "",
            "| | " + " | ".join(f"{p.value:,}" for p in points) + " |",
            "|---|" + "---|" * len(points),
            "| ms a step | " + " | ".join(f"{1e3 * p.seconds:.2f}" for p in points),
            "| a second | " + " | ".join(f"{p.rate:,.0f}" for p in points),
        ]
        lines[-2:] = [f"{line} |" for line in lines[-2:]]
    return "\n".join(lines) + "\n"


def draw(measured: Sequence[tuple[Curve, list[Point]]], path: pathlib.Path):
    """Draws the curves."""
    figure = Figure(figsize=(3.2 * len(measured), 3), layout="constrained")
    axes = figure.subplots(1, len(measured), squeeze=False)[0]
    for axis, (curve, points) in zip(axes, measured, strict=True):
        axis.semilogx([p.value for p in points], [p.rate / 1e3 for p in points], "o-")
        axis.set_title(title(curve), fontsize=9)
        axis.set_xticks(curve.values, [f"{value:,}" for value in curve.values])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter("{x:g}k")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def run(curves: Sequence[Curve], rounds: int, out: pathlib.Path):
    """Measures the curves, prints and writes the tables, and draws."""
    measured = []
    for curve in curves:
        print(title(curve), flush=True)
        measured.append((curve, measure(curve, rounds)))
    text = to_markdown(measured, rounds)
    print(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    draw(measured, out.with_suffix(".png"))


def main(_):
    """Runs every curve."""
    run(CURVES, flags.FLAGS.rounds, pathlib.Path(flags.FLAGS.out))


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 5, "Number of timing rounds.", 1)
    flags.DEFINE_string("out", "benchmarks/results/scale.md", "File of the tables.")
    app.run(main)
