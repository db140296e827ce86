"""Measures steps of NP-DPO on texts of real lengths: rows, padded, and TRL's DPO.

    taskset -c 0 python -m benchmarks.packed_dpo --tokenizer=FOLDER \
        --choices=llmfao.jsonl.gz --choices=crowdrag25.jsonl.gz --trl_python=PYTHON

Of each table of choices (or of samples) the tokenizer of a Hugging Face folder gives
the lengths of prompts and responses; the tokens themselves are random, as are the
weights of the model. Each round runs every step once, on the same choices, and counts
the processor time of the process that ran it, so that figures hold on a machine that
others use. A token of use is one of a stored prompt and response; padding does not
count. The table is written to `--out`.
"""

import contextlib
import dataclasses
import functools
import gzip
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags

from benchmarks.dpo_report import TRL
from benchmarks.dpo_variants import Sizes, make_batch, make_step_of
from benchmarks.trl_step import trl
from fsa.data.tasks import packing
from fsa.data.tasks.pairs import PackedBatch, PairBatch
from fsa.data.tasks.task import TRAIN
from fsa.language import huggingface
from fsa.language.token_table import TokenTable
from fsa.language.tokenization import Tokenization, Unusable
from fsa.models.policy import INFERRED

_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "Hugging Face folder.", required=True
)
_CHOICES = flags.DEFINE_multi_string("choices", [], "Table of choices.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of timing.", 1)
_TRL = flags.DEFINE_string("trl_python", "", "Python that has trl; none if empty.")
_WITHOUT = flags.DEFINE_multi_string("without", [], "Name of a step to leave out.")
_USERS = flags.DEFINE_integer("users", 8, "People of a step.", 1)
_PAIRS = flags.DEFINE_integer("pairs", 2, "Choices of each.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Which choices are drawn.", 0)
_OUT = flags.DEFINE_string("out", "", "File that the table is added to.")
# Batches that the lengths of rows are chosen for, and others that padding is told of.
_PLANNED, _CHECKED = 32, 200


class Lengths(NamedTuple):
    """Lengths of the choices of one table.

    Attributes:
      name: of the table.
      of_choices: `[choices, 3]`, tokens of prompt, chosen and rejected.
    """

    name: str
    of_choices: np.ndarray


def read_lengths(path: str, folder: str) -> Lengths:
    """Tokenizes the training rows of a table; responses are cut after 512 tokens.

    Args:
      path: a table of choices, or of samples with the columns prompt and answer, of
        which each makes a pair with the next one to the same prompt.
      folder: a Hugging Face folder with a tokenizer.
    """
    tokenization = Tokenization(huggingface.load_tokenizer(pathlib.Path(folder)))

    @functools.cache
    def lengths(prompt, response):
        return [len(tokens) for tokens in tokenization.pair(prompt, response)]

    found, last = [], {}
    for row in _rows(pathlib.Path(path)):
        if row["split"] != TRAIN:
            continue
        if "answer" in row:
            other = last.pop(row["prompt"], None)
            if other is None:
                last[row["prompt"]] = row["answer"]
                continue
            row |= {"chosen": other, "rejected": row["answer"]}
        with contextlib.suppress(Unusable):
            prompt, chosen = lengths(row["prompt"], row["chosen"])
            _, rejected = lengths(row["prompt"], row["rejected"])
            found.append([prompt, chosen, rejected])
    parent = pathlib.Path(path).parent.name
    return Lengths(parent or pathlib.Path(path).stem, np.array(found))


def _rows(path: pathlib.Path):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def in_rows(batch: PairBatch, plan: packing.Packing) -> PackedBatch:
    """Packs the pairs of a padded batch into rows."""
    tokens, start, stop = (x.reshape(-1, *x.shape[3:]) for x in batch.responses)
    table = TokenTable.of(
        [
            (own[:end], first)
            for own, first, end in zip(tokens, start, stop, strict=True)
        ]
    )
    users, pairs = batch.reference.shape[:2]
    items = np.arange(users * pairs * 2).reshape(users, pairs, 2)
    rows = packing.pack(plan, table, batch.reference.ravel(), items, np.arange(users))
    shared = (batch.step, batch.position, batch.user, batch.episode)
    return PackedBatch(*shared, np.full(users, pairs, np.int32), rows)


def mean_padding(lengths: np.ndarray, plan: packing.Packing, choices: int) -> float:
    """Returns the share of padding over batches other than those planned for."""
    rng, real, total = np.random.default_rng(99), 0, 0
    for _ in range(_CHECKED):
        own = texts(lengths[rng.choice(len(lengths), choices)]).sum(-1)
        used = [
            own[row].sum()
            for row in packing.best_fit(own, plan.lengths[-1], plan.places)
        ]
        total += sum(plan.lengths[np.searchsorted(plan.lengths, x)] for x in used)
        real += own.sum()
    return 1 - real / total


def texts(lengths: np.ndarray) -> np.ndarray:
    """Returns the tokens of both stored sequences of choices, `[..., 2]`."""
    return lengths[..., :1] + lengths[..., 1:]


def measure(lengths: Lengths, sizes: Sizes) -> list[str]:
    """Returns the lines of the table for one distribution of lengths."""
    rng = np.random.default_rng(_SEED.value)
    choices = sizes.users * sizes.pairs

    def draw():
        return lengths.of_choices[rng.choice(len(lengths.of_choices), choices)]

    drawn = draw()
    planned = [texts(draw()).sum(-1) for _ in range(_PLANNED)]
    longest = texts(lengths.of_choices).sum(-1).max()
    plan = packing.choose(planned, int(longest))
    model, base = sizes.make()
    batch = make_batch(sizes, model, base, drawn.reshape(sizes.users, sizes.pairs, 3))
    packed = in_rows(batch, plan)
    useful = int(texts(drawn).sum())
    length = batch.responses.tokens.shape[-1]
    padding = 1 - useful / (2 * choices * length)
    programs, seconds, more = {}, {}, {}
    rank = f"low_rank({sizes.rank})"
    for name, own, share in (
        ("NP-DPO, rows", packed, packing.padding(packed.rows)),
        ("NP-DPO, padded", batch, padding),
    ):
        if name in _WITHOUT.value:
            continue
        step, arguments = make_step_of(sizes, model, base, own, INFERRED, rank)
        begin = time.process_time()
        program = jax.jit(step).lower(*arguments).compile()
        compiling = time.process_time() - begin
        needs = program.memory_analysis().temp_size_in_bytes / 1e6
        more[name] = [f"{share:.1%}", f"{needs:,.0f}", f"{compiling:.0f}"]
        programs[name] = _counted(program, arguments)
    said = ""
    with contextlib.ExitStack() as stack:
        if _TRL.value:
            program, said = stack.enter_context(trl(sizes, base, batch, _TRL.value))
            programs[TRL] = _difference(program)
            more[TRL] = [f"{padding:.1%}", "-", "-"]
        for name, program in programs.items():
            program()
            seconds[name] = []
        for _ in range(_ROUNDS.value):
            for name, program in programs.items():
                seconds[name].append(program())
    if said:
        print(said)
    other = mean_padding(lengths.of_choices, plan, choices)
    print(f"{lengths.name}: {plan}; padding of other batches {other:.1%}")
    lines = []
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(seconds[list(seconds)[-1]], own, strict=True)]
        cells = [lengths.name, name, f"{useful:,}", *more[name]]
        cells += [f"{statistics.median(own):.2f}"]
        cells += [f"{useful / statistics.median(own):,.0f}"]
        cells += [f"{statistics.median(ratios):.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _counted(program: Callable, arguments: tuple) -> Callable[[], float]:
    """Returns a function that runs a program and returns its processor time."""

    def run():
        begin = time.process_time()
        jax.block_until_ready(program(*arguments))
        return time.process_time() - begin

    return run


def _difference(so_far: Callable[[], float]) -> Callable[[], float]:
    """Returns a function of the difference to the last call of another one."""
    last = so_far()

    def run():
        nonlocal last
        now = so_far()
        found, last = now - last, now
        return found

    return run


def main(_):
    """Prints the table, and adds it to `--out`."""
    sizes = Sizes(users=_USERS.value, pairs=_PAIRS.value)
    head = "texts,step,tokens of use,padding,memory MB,compile s,s,tokens/s,times last"
    cells = head.split(",")
    lines = [
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, "
        f"{len(os.sched_getaffinity(0))} core, {_ROUNDS.value} rounds, "
        f"{dataclasses.asdict(sizes)}, processor time",
        "",
        f"| {' | '.join(cells)} |",
        "|" + "---|" * len(cells),
    ]
    for path in _CHOICES.value:
        lines += measure(read_lengths(path, _TOKENIZER.value), sizes)
        print("\n".join(lines), flush=True)
    if _OUT.value:
        with open(_OUT.value, "a") as file:
            file.write("\n".join(["", *lines]) + "\n")


if __name__ == "__main__":
    app.run(main)
