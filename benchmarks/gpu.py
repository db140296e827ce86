"""Measures one accelerator in a few minutes: training, attention, generation, adapters.

`python benchmarks/gpu.py` needs no files. Language models have the shapes of
Qwen2.5-0.5B and 1.5B and random weights, in bfloat16. It measures

- steps of DPO with LoRA and of NP-DPO, and their MFU by two peaks: the rate of a large
  matrix product on this chip, and the rate that its vendor states. A forward pass is
  timed as well: if its MFU is low, the language model limits the step; otherwise the
  gradient or the code around it does;
- the step with cuDNN's attention against that with plain attention;
- generation for one model and for as many people as texts;
- adapters of people a second, from z to LoRA factors in the host's memory.

Programs run in turns, so that ratios are reliable. Whatever is done is written at once,
as `gpu-CARD.json` and `gpu-CARD.md` in `--out`. What would begin after `--minutes` is
left out, and both files say so. More tokens a step (`--users`, `--pairs`) raise the
MFU, as far as memory allows.
"""

import dataclasses
import json
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks import generate
from benchmarks.dpo_variants import Sizes, log_probs, make_steps
from benchmarks.language_model import LATENT_DIM, OUTPUTS
from benchmarks.measures import in_turns, paired_ratio
from fsa import folders, text_tables
from fsa.conditioning import hypernet
from fsa.conditioning.adapters import to_lora
from fsa.cost_model.flops import flops, peak_flops
from fsa.language.attention_kernels import CUDNN, XLA
from fsa.models.policy import spec_of

FORWARD = "forward pass alone"


class Table(NamedTuple):
    """Some measurements.

    Attributes:
      title: what was measured.
      columns: name -> format of its numbers.
      rows: name and numbers of each program; None where nothing is known.
    """

    title: str
    columns: dict[str, str]
    rows: list[tuple]

    def to_markdown(self) -> str:
        """Formats the table."""
        cells = [
            [name]
            + [
                "-" if value is None else format(value, form)
                for value, form in zip(values, self.columns.values(), strict=True)
            ]
            for name, *values in self.rows
        ]
        table = text_tables.markdown([["", *self.columns], *cells])
        return f"**{self.title}**\n\n{table}"


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


def measure_steps(sizes: Sizes, rounds: int) -> list[Timing]:
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


def table_of_steps(
    sizes: Sizes, timings: list[Timing], measured_peak: float, stated: float | None
) -> Table:
    """Compares steps with DPO, and their operations with the peaks."""
    (plain,) = (each.seconds for each in timings if each.name == sizes.plain)
    rows = []
    for each in timings:
        seconds = statistics.median(each.seconds)
        rate = each.needed / seconds
        rows.append(
            (
                each.name,
                1e3 * seconds,
                paired_ratio(each.seconds, plain),
                sizes.tokens / seconds,
                each.done / 1e12,
                rate / measured_peak,
                None if stated is None else rate / stated,
            )
        )
    columns = {
        "ms": ",.1f",
        "ratio": ".3f",
        "tokens/s": ",.0f",
        "TFLOP": ".3g",
        "MFU, measured peak": ".1%",
        "MFU, stated peak": ".1%",
    }
    return Table(f"{sizes.model}: {sizes.tokens:,} tokens a step", columns, rows)


def measure_attention(sizes: Sizes, rounds: int) -> Table:
    """Times the step of NP-DPO with both implementations of attention."""
    programs = {}
    for attention in (XLA, CUDNN):
        own = dataclasses.replace(sizes, attention=attention)
        step, arguments = make_steps(own)[own.low_rank]()
        programs[attention] = (jax.jit(step).lower(*arguments).compile(), arguments)
    seconds = in_turns(programs, rounds)
    rows = [
        (
            name,
            1e3 * statistics.median(own),
            paired_ratio(own, seconds[XLA]),
            programs[name][0].memory_analysis().temp_size_in_bytes / 2**30,
        )
        for name, own in seconds.items()
    ]
    length = sizes.prompt + sizes.response
    return Table(
        f"Attention, {sizes.low_rank}, {sizes.model}: texts of {length:,} tokens",
        {"ms": ",.1f", "ratio": ".3f", "temporary GiB": ".2f"},
        rows,
    )


def measure_generation(sizes: generate.Sizes, rounds: int) -> Table:
    """Times generation by one model, and for each text's own person."""
    rows = [
        (name, *numbers) for name, numbers in generate.measure(sizes, rounds).items()
    ]
    title = f"Generation, {sizes.model}: {sizes.users} texts of {sizes.new} tokens"
    return Table(title, {"tokens/s": ",.0f", "time, ratio": ".2f"}, rows)


def measure_adapters(sizes: Sizes, people: int, rounds: int) -> Table:
    """Times the LoRA factors of many people, from z to arrays of the host."""
    _, variables = sizes.make()
    spec = spec_of([(name, f"low_rank({sizes.rank})") for name in OUTPUTS])
    init, modulate = hypernet(spec, LATENT_DIM)
    hyper = init(jax.random.key(0), variables)
    z = jax.random.normal(jax.random.key(1), (people, LATENT_DIM))
    shapes = jax.eval_shape(lambda: variables)

    @jax.jit
    def factors(hyper, z):
        return jax.vmap(lambda z: to_lora(spec, shapes, modulate(hyper, z)))(z)

    def fetched(hyper, z):
        return jax.device_get(factors(hyper, z))

    name = f"{people:,} people together"
    seconds = in_turns({name: (fetched, (hyper, z))}, rounds)[name]
    return Table(
        f"Adapters of rank {sizes.rank}, {sizes.model}",
        {"people/s": ",.0f"},
        [(name, people / statistics.median(seconds))],
    )


class Report:
    """What was measured so far, as files."""

    def __init__(self, folder: pathlib.Path, measured_peak: float):
        """Makes an empty report.

        Args:
          folder: where its files are written.
          measured_peak: of `matmul_peak`.
        """
        self._device = jax.devices()[0].device_kind
        card = re.sub(r"[^a-z0-9]+", "-", self._device.lower()).strip("-")
        self._path = folder / f"gpu-{card}"
        self._measured, self._stated = measured_peak, peak_flops(self._device)
        self._tables, self._left_out = [], []

    def add(self, table: Table) -> None:
        """Adds a table, and writes the files."""
        self._tables.append(table)
        self._write()

    def leave_out(self, name: str) -> None:
        """Says that there was no time for something."""
        self._left_out.append(name)
        self._write()

    def to_markdown(self) -> str:
        """Formats all tables."""
        stated = "an unknown rate"
        if self._stated is not None:
            stated = f"{self._stated / 1e12:,.0f} TFLOP/s"
        head = (
            f"# {self._device}\n\njax {jax.__version__}; "
            f"{self._measured / 1e12:,.3g} TFLOP/s measured in bfloat16 products, "
            f"{stated} by its vendor. Medians; ratios are of times of the same round. "
            "MFU counts two forward passes of the language model a step, the least "
            "that its loss and the gradient by activations need; TFLOP counts all "
            "operations, also those of conditioning, encoder and rematerialisation."
        )
        parts = [head, *(table.to_markdown() for table in self._tables)]
        if self._left_out:
            parts.append(f"Left out for want of time: {', '.join(self._left_out)}.")
        return "\n\n".join(parts) + "\n"

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "device": self._device,
            "jax": jax.__version__,
            "measured_peak": self._measured,
            "stated_peak": self._stated,
            "tables": [table._asdict() for table in self._tables],
            "left_out": self._left_out,
        }
        text = json.dumps(content, indent=1) + "\n"
        folders.write_text(self._path.with_suffix(".json"), text)
        folders.write_text(self._path.with_suffix(".md"), self.to_markdown())


def sections(
    sizes: Sizes, models: list[str], people: int, rounds: int, measured_peak: float
) -> Iterator[tuple[str, Callable[[], Table]]]:
    """Yields what is measured, as (name, function that does it); the first comes first.

    Args:
      sizes: of the steps; `model` is set here.
      models: shapes of language models; the first is used where one is enough.
      people: whose adapters are computed together.
      rounds: of timing.
      measured_peak: of `matmul_peak`.
    """
    stated = peak_flops(jax.devices()[0].device_kind)
    first = dataclasses.replace(sizes, model=models[0])
    for model in models:
        own = dataclasses.replace(sizes, model=model)
        yield (
            f"steps of {model}",
            lambda own=own: table_of_steps(
                own, measure_steps(own, rounds), measured_peak, stated
            ),
        )
    # Half as many tokens, in fewer and longer texts, where attention costs more.
    long = dataclasses.replace(
        first, users=1, pairs=1, prompt=2 * sizes.prompt, response=6 * sizes.response
    )
    yield "attention", lambda: measure_attention(long, rounds)
    for batch in (1, 16, 64):
        own = generate.Sizes(model=models[0], dtype=sizes.dtype, users=batch)
        yield (
            f"generation of {batch} texts",
            lambda own=own: measure_generation(own, rounds),
        )
    yield "adapters", lambda: measure_adapters(first, people, rounds)


def main(_):
    """Measures, section by section, until the time is over."""
    begin = time.monotonic()
    sizes = Sizes(
        users=flags.FLAGS.users,
        pairs=flags.FLAGS.pairs,
        prompt=flags.FLAGS.prompt,
        response=flags.FLAGS.response,
        rank=flags.FLAGS.rank,
        dtype="bfloat16",
        remat=flags.FLAGS.remat,
    )
    rounds, people = flags.FLAGS.rounds, flags.FLAGS.people
    peak = matmul_peak(flags.FLAGS.matmul, rounds)
    report = Report(pathlib.Path(flags.FLAGS.out), peak)
    for name, measure in sections(sizes, flags.FLAGS.models, people, rounds, peak):
        if time.monotonic() - begin > 60 * flags.FLAGS.minutes:
            report.leave_out(name)
            continue
        print(f"{name} ...", flush=True)
        report.add(measure())
    print(report.to_markdown())


if __name__ == "__main__":
    flags.DEFINE_list(
        "models", ["qwen2.5-0.5b", "qwen2.5-1.5b"], "Shapes of language models."
    )
    flags.DEFINE_integer("users", 4, "Users of a batch.", 1)
    flags.DEFINE_integer("pairs", 2, "Pairs of each user.", 1)
    flags.DEFINE_integer("prompt", 256, "Tokens of a prompt.", 1)
    flags.DEFINE_integer("response", 256, "Tokens of a response.", 1)
    flags.DEFINE_integer("rank", 8, "Rank of LoRA and of low-rank conditioning.", 1)
    flags.DEFINE_integer("people", 256, "People whose adapters are computed.", 1)
    flags.DEFINE_string("remat", "", "Rematerialisation, see Sizes; by default none.")
    flags.DEFINE_integer("matmul", 8192, "Size of the product for the peak.", 1)
    flags.DEFINE_integer("rounds", 10, "Number of timing rounds.", 1)
    flags.DEFINE_float("minutes", 6, "When no further measurement begins.", 0)
    flags.DEFINE_string("out", "benchmarks/results", "Folder of the files.")
    app.run(main)
