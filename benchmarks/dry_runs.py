"""Dry runs of policies of 0.5B to 70B on TPU pods: the figures of docs/dry_runs.md.

    python -m benchmarks.dry_runs --out=runs/dry_runs [--only=REGEX]

compiles every run in a process of its own, which needs the TPU compiler (the extra
`tpu`). It writes each result as JSON to that folder, skips those that are there
already, prints the tables and draws the curve of weak scaling, `scale.png`. A
compilation takes one to four minutes of a core and up to 3 GB.
"""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any, NamedTuple

from absl import app, flags
from matplotlib.figure import Figure

_OUT = flags.DEFINE_string("out", None, "A folder for the results.", required=True)
_ONLY = flags.DEFINE_string("only", "", "Compile only runs whose names match.")

_MODELS = ("qwen2_0_5b", "qwen2_1_5b", "qwen2_7b", "llama3_70b")
_TOPOLOGIES = ("v5e:16x16", "v6e:16x16", "v5p:4x4x4")
# fsdp on 64 chips; over all chips of a square or a cube XLA all-reduces gradients.
_IN_PARTS = {"v5p:4x4x4": {"qwen2_7b": 32, "llama3_70b": 32}}
_SCALED = "qwen2_1_5b"
# (topology, its chips, fsdp, slices); see `_IN_PARTS`.
_SCALES = (
    ("v5e:2x4", 8, 8, 1),
    ("v5e:4x4", 16, 8, 1),
    ("v5e:4x8", 32, 32, 1),
    ("v5e:8x8", 64, 32, 1),
    ("v5e:8x16", 128, 128, 1),
    ("v5e:16x16", 256, 128, 1),
    ("v5p:8x8x8", 512, 256, 1),
    ("v5p:8x8x8", 512, 256, 2),
)
# (step, fsdp, tensor, flags) of a 70B on 16 chips, of which it fills more than half.
_AFTER_TOPOLOGY = "v5e:4x4"
_AFTER_TRAINING = (
    ("evaluate", 4, 4, ("--config.eval.users_at_once=4",)),
    ("write", 2, 8, ("--batch_size=8",)),
)


class Compilation(NamedTuple):
    """One dry run.

    Attributes:
      name: name of its file.
      config: the experiment file with its argument.
      topology: see `fsa compile`.
      fsdp: devices that store parameters in parts; None for the config's value.
      batch_size: examples of a batch; None for the config's value.
      slices: number of slices of that topology.
      step: what is compiled, see `fsa compile`.
      more: further arguments.
    """

    name: str
    config: str
    topology: str
    fsdp: int | None = None
    batch_size: int | None = None
    slices: int = 1
    step: str = "train"
    more: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The config, as the tables show it."""
        return self.config.replace(".py", "")

    @property
    def command(self) -> list[str]:
        """The arguments that compile it, without `--out`."""
        config = f"--config=experiments/policy/{self.config}"
        run = ["-m", "fsa", "compile", config]
        run.append(f"--topology={self.topology}")
        if self.fsdp:
            run.append(f"--config.mesh.fsdp={self.fsdp}")
        if self.batch_size:
            run.append(f"--config.train.batch_size={self.batch_size}")
        if self.slices > 1:
            run.append(f"--slices={self.slices}")
        return [*run, f"--step={self.step}", *self.more]

    @property
    def is_scale(self) -> bool:
        """Whether it is a point of the weak scaling."""
        return self.name.startswith("scale-")


def _of(model: str, variant: str, topology: str) -> Compilation:
    parts = _IN_PARTS.get(topology, {}).get(model)
    name = f"{model}-{variant}-{topology.replace(':', '-')}"
    return Compilation(name, f"{model}.py:{variant}", topology, parts)


def _scale(topology: str, chips: int, fsdp: int, slices: int) -> Compilation:
    name = f"scale-{topology.replace(':', '-')}" + (f"x{slices}" if slices > 1 else "")
    config = f"{_SCALED}.py:np-dpo-full"
    return Compilation(name, config, topology, fsdp, chips * slices, slices)


def _after(step: str, fsdp: int, tensor: int, more: tuple[str, ...]) -> Compilation:
    name = f"llama3_70b-{step}-{_AFTER_TOPOLOGY.replace(':', '-')}"
    more = (f"--config.mesh.fsdp={fsdp}", f"--config.mesh.tensor={tensor}", *more)
    config = "llama3_70b.py:np-dpo"
    return Compilation(name, config, _AFTER_TOPOLOGY, step=step, more=more)


def compilations() -> list[Compilation]:
    """Returns all dry runs."""
    conditioned = [
        _of(model, variant, topology)
        for model in _MODELS
        for topology in _TOPOLOGIES
        for variant in ("np-dpo", "np-dpo-full")
    ]
    plain = [
        _of(model, variant, "v5e:16x16")
        for model in _MODELS
        for variant in ("dpo", "dpo-full")
    ]
    after = [_after(*each) for each in _AFTER_TRAINING]
    return [*conditioned, *plain, *after, *(_scale(*each) for each in _SCALES)]


def main(argv):
    """Compiles the runs without a result, and prints tables of all results."""
    del argv
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    for each in compilations():
        found = out / f"{each.name}.json"
        if found.exists() or not re.search(_ONLY.value, each.name):
            continue
        print(each.name, flush=True)
        with open(out / f"{each.name}.log", "w") as log:
            subprocess.run(
                [sys.executable, *each.command, f"--out={found}"],
                stdout=log,
                stderr=log,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )
    figures = {
        each: json.loads(path.read_text())
        for each in compilations()
        if (path := out / f"{each.name}.json").exists()
    }
    print("\n".join(to_markdown(figures)))
    draw(figures, out / "scale.png")


def to_markdown(figures: dict[Compilation, dict[str, Any]]) -> list[str]:
    """Returns the lines of the tables."""
    by_name = {each.name: found for each, found in figures.items()}
    runs = [each for each in figures if each.step == "train" and not each.is_scale]
    after = [each for each in figures if each.step != "train"]
    scales = [each for each in figures if each.is_scale]
    lines = [
        "| config | topology | fits | arguments | peak, of HBM | TFLOPs | gathered | "
        "reduced | passed on | all, of theory | step | MFU | compiled |",
        "|-" * 13 + "|",
        *(_row(each, figures[each]) for each in runs),
        "",
        "| conditioned against not | FLOPs | bytes of collectives | memory moved |",
        "|-|-|-|-|",
    ]
    for each in runs:
        plain = each.name.replace("np-dpo", "dpo")
        if plain != each.name and by_name.get(plain, {}).get("flops"):
            lines.append(_ratios(each, figures[each], by_name[plain]))
    lines += [
        "",
        "| step | config | topology | arguments, of all chips | peak, of HBM "
        "| gathered | reduced | step | compiled |",
        "|-" * 9 + "|",
        *(_after_row(each, figures[each]) for each in after),
        "",
        "| chips | topology | fsdp | MB sent a chip | of theory | of it between slices "
        "| arguments, GiB a chip |",
        "|-|-|-|-|-|-|-|",
        *(_scale_row(each, figures[each]) for each in scales),
    ]
    return lines


def draw(figures: dict[Compilation, dict[str, Any]], path: pathlib.Path):
    """Draws what a chip sends and stores by the number of chips of one slice."""
    found = [
        (each, run)
        for each, run in figures.items()
        if each.is_scale and each.slices == 1
    ]
    chips = [run["chips"] for _, run in found]
    figure = Figure(figsize=(8, 3), layout="constrained")
    sent, stored = figure.subplots(1, 2)
    sent.plot(chips, [_sent(run) / 1e9 for _, run in found], "o-", label="sent")
    sent.plot(chips, [theory(*each) / 1e9 for each in found], "k--", label="in theory")
    sent.set_ylim(bottom=0)
    sent.set_ylabel("GB a chip and step")
    sent.legend()
    held = [run["memory"]["arguments"] / 2**30 for _, run in found]
    stored.plot(chips, held, "o-")
    stored.set_yscale("log", base=2)
    stored.set_ylabel("state, GiB a chip")
    for axis in (sent, stored):
        axis.set_xscale("log", base=2)
        axis.set_xlabel("chips")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _sent(found: dict[str, Any], kinds=("",), axis="") -> float:
    return sum(
        entry["bytes"]
        for entry in found["collectives"]
        if entry["kind"].startswith(tuple(kinds)) and axis in entry["axis"]
    )


def theory(each: Compilation, found: dict[str, Any]) -> float:
    """Returns the fewest bytes that one chip must send, with weights in bfloat16.

    Layers are gathered in both passes, embedding and unembedding once. If they are
    trained, gradients are reduced and scattered over fsdp, and the parts reduced over
    data. The communication of chips that compute a user together does not count.
    """
    name, _, variant = each.config.partition(".py:")
    config = importlib.import_module(f"experiments.policy.{name}").get_config(variant)
    shape = dict(config.language_model.shape)
    fsdp, tensor = each.fsdp or config.mesh.fsdp, config.mesh.tensor
    data = found["chips"] // (fsdp * tensor)
    width, hidden = shape["hidden_size"], shape["intermediate_size"]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    # In all of these models queries and outputs have the width of the states.
    attention = 2 * width * width * (1 + kv_heads / heads)
    layers = shape["num_hidden_layers"] * (attention + 3 * width * hidden)
    ends = shape["vocab_size"] * width * (1 if shape.get("tie_word_embeddings") else 2)
    # A chip gathers its part of each weight, by `tensor`, once per micro-batch.
    split = (fsdp - 1) / fsdp * config.train.accumulate / tensor
    sent = 2 * (2 * layers + ends) * split
    if config.policy.train_base:
        gradients = 2 * (layers + ends)
        sent += gradients * split
        sent += 2 * gradients / (fsdp * tensor) * (data - 1) / data
    return sent


def _of_theory(each: Compilation, found: dict[str, Any]) -> float:
    """Returns the bytes sent of weights and gradients, as a ratio to `theory`."""
    within = (e["bytes"] for e in found["collectives"] if e["axis"] == "tensor")
    return (_sent(found) - sum(within)) / theory(each, found)


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value / 2**30:.2f} GiB"


def _row(each: Compilation, found: dict[str, Any]) -> str:
    memory = found["memory"]
    cells = [each.label, each.topology]
    cells += ["yes" if found["fits"] else "no", _gib(memory["arguments"])]
    if memory["peak"]:
        share = memory["peak"] / memory["hbm"]
        cells.append(f"{_gib(memory['peak'])}, {share:.0%}")
    else:
        cells.append("-")
    if found["flops"] is None:
        return "| " + " | ".join([*cells, *["-"] * 8]) + " |"
    gathered = _sent(found, ("all-gather",))
    reduced = _sent(found, ("reduce-scatter", "all-reduce"))
    cells += [f"{found['flops'] / 1e12:.1f}"]
    cells += [f"{gathered / 1e9:.2f} GB", f"{reduced / 1e9:.2f} GB"]
    cells += [f"{_sent(found, ('collective-permute',)) / 1e9:.2f} GB"]
    cells += [f"{_of_theory(each, found):.2f}"]
    cells += [f"{found['step_seconds']:.3g} to {found['step_seconds_serial']:.3g} s"]
    cells += [f"{found['mfu']:.0%} to {found['mfu_serial']:.0%}"]
    cells += [f"{found['compile_seconds']:.0f} s"]
    return "| " + " | ".join(cells) + " |"


def _after_row(each: Compilation, found: dict[str, Any]) -> str:
    memory, chips = found["memory"], found["chips"]
    spent = found["step_seconds"], found["step_seconds_serial"]
    cells = [
        f"{each.step}, {' '.join(each.more)}",
        each.label,
        each.topology,
        f"{_gib(memory['arguments'])}, {_gib(chips * memory['arguments'])}",
        f"{_gib(memory['peak'])}, {memory['peak'] / memory['hbm']:.0%}",
        f"{_sent(found, ('all-gather',)) / 1e9:.2f} GB",
        f"{_sent(found, ('reduce-scatter', 'all-reduce')) / 1e9:.2f} GB",
        f"{spent[0]:.3g} to {spent[1]:.3g} s",
        f"{found['compile_seconds']:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def _ratios(each: Compilation, found: dict[str, Any], plain: dict[str, Any]) -> str:
    flops, moved = (found[name] / plain[name] for name in ("flops", "bytes"))
    sent = _sent(found) / _sent(plain)
    return (
        f"| {each.label} on {each.topology} | {flops:.3f} | {sent:.3f} | {moved:.3f} |"
    )


def _scale_row(each: Compilation, found: dict[str, Any]) -> str:
    sent, between = _sent(found), _sent(found, axis="slices")
    slices = f"{each.slices} x " if each.slices > 1 else ""
    return (
        f"| {found['chips']} | {slices}{each.topology} | {each.fsdp} | "
        f"{sent / 1e6:,.0f} | {_of_theory(each, found):.2f} | "
        f"{between / 1e6:,.0f} | {found['memory']['arguments'] / 2**30:.2f} |"
    )


if __name__ == "__main__":
    app.run(main)
