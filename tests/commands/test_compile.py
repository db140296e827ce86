"""Dry runs: the real step in shapes alone."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from policies import flags, tiny_policy_config, write_all

from fsa.cost_model import chips
from fsa.errors import InputError
from fsa.language.huggingface import architecture
from fsa.recipes import abstract, dry_run
from fsa.recipes.config import resolve
from fsa.recipes.runs import build

SOMEWHERE = "models/that-nobody-has"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("tiny"))


def shapes(tree):
    return {
        jax.tree_util.keystr(path): (tuple(x.shape), np.dtype(x.dtype))
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    "variant, train_base", [("np-dpo", False), ("dpo-by-group", True)]
)
def test_abstract_runs_are_real_ones_in_shape(folder, variant, train_base):
    config = tiny_policy_config(
        folder, variant, **{"policy.train_base": train_base, "task.buckets": (20,)}
    )
    real = build(config, jax.random.key(0), jax.random.key(1))
    found = abstract.abstract_run(config)
    assert shapes(found.variables) == shapes(real.variables)
    assert shapes(found.constants) == shapes(real.constants)
    positions = np.arange(config["train"]["batch_size"], dtype=np.int32)
    assert shapes(found.rows) == shapes(real.make_examples(0, positions))
    assert found.sharding is real.sharding


def test_shapes_in_a_config_stand_for_the_folder(folder):
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in architecture.read_config(folder / "language").items()
    }
    by_folder = abstract.abstract_run(tiny_policy_config(folder))
    by_shape = abstract.abstract_run(
        tiny_policy_config(
            folder,
            **{
                "language_model.shape": tuple(fields.items()),
                "language_model.path": SOMEWHERE,
                "task.path": SOMEWHERE,
            },
        )
    )
    assert shapes(by_folder.variables) == shapes(by_shape.variables)


def test_without_folder_and_shape_one_line_says_so(folder):
    config = tiny_policy_config(folder, **{"language_model.path": SOMEWHERE})
    with pytest.raises(InputError, match="config.json"):
        abstract.abstract_run(config)


def test_a_shape_that_is_no_model_is_refused(folder):
    with pytest.raises(InputError, match="language_model.shape.*architectures"):
        tiny_policy_config(folder, **{"language_model.shape": (("hidden_size", 8),)})


def test_the_command_writes_what_it_prints(folder, launch, tmp_path):
    out = tmp_path / "there" / "found.json"
    ended = launch("compile", *flags(folder), "--topology=local", f"--out={out}")
    assert ended.code == 0, ended.err
    found = json.loads(out.read_text())
    keys = "chips fits memory flops bytes collectives step_seconds mfu"
    assert set(keys.split()) <= found.keys()
    assert set(found["memory"]) == {"arguments", "temporary", "peak", "hbm"}
    assert found["chips"] == 1 and found["fits"] and found["collectives"] == []
    # Nothing is known of this machine's chips.
    assert found["step_seconds"] is None and found["mfu"] is None
    assert f"{found['flops']:.4g} in matrix products" in ended.out
    assert "It fits." in ended.out


def test_arguments_and_flops_are_those_of_the_closed_form(folder):
    config = tiny_policy_config(folder, "np-dpo")
    found = dry_run.dry_run(config, jax.devices(), None)
    run = abstract.abstract_run(config)
    weights, rows = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
        for tree in ((run.constants, run.variables["statistics"]), run.rows)
    )
    trained = sum(x.size * 4 for x in jax.tree.leaves(run.variables["params"]))
    # Parameters, their average and two moments; steps and the key are a few bytes, and
    # what no step reads of the rows, as users' groups, is left out.
    total = weights + rows + 4 * trained
    assert found.memory.arguments == pytest.approx(total, rel=0.01)
    # Forward and the gradients of activations, not those of frozen weights.
    assert found.useful_flops < found.costs.flops < 1.5 * found.useful_flops


@pytest.mark.parametrize("missing", [0, 1])
def test_a_program_that_compiles_fits_with_its_arguments_or_not(folder, missing):
    """The compiler does not count them; by a single byte."""
    config = tiny_policy_config(folder, "np-dpo")
    peak = dry_run.dry_run(config, jax.devices(), None).memory.peak
    chip = dataclasses.replace(chips.CHIPS["v5e"], hbm=peak - missing)
    found = dry_run.dry_run(config, jax.devices(), chip)
    assert found.fits == (not found.advice) == (not missing)
    assert found.memory.arguments > 0 and found.costs is not None


@pytest.mark.parametrize("topology", ["v5e:3x3", "v5e:32x32", "h100:8", "v5e"])
def test_topologies_that_nobody_sells_end_in_one_line(launch, topology):
    ended = launch(
        "compile",
        "--config=experiments/policy/qwen2_0_5b.py",
        f"--topology={topology}",
    )
    assert ended.code == 2
    assert ended.err.startswith(f"error: --topology={topology}: ")
    assert ended.err.count("\n") == 1


def test_slices_need_a_network_that_is_published(launch):
    ended = launch(
        "compile",
        "--config=experiments/policy/qwen2_0_5b.py",
        "--topology=v6e:16x16",
        "--slices=2",
    )
    assert ended.code == 2 and "--slices=2" in ended.err


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
            "memory space hbm. Used 20.45G of 15.75G hbm. Exceeded hbm capacity by "
            "4.7G.",
            20.45 * 2**30 - 1000,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
            "for HLO temporaries (19.51G) exceeds available HBM (15.75G).",
            19.51 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: of something else", None),
    ],
)
def test_what_the_compiler_says_of_memory_is_read(message, wanted):
    assert dry_run.temporary_bytes(message, 1000) == pytest.approx(wanted)


@pytest.mark.tpu
def test_a_step_that_does_not_fit_is_a_verdict(compile_for_tpu):
    """What the real compiler refuses: 70B, trained whole, on 256 chips of 16 GiB."""
    config = "experiments/policy/llama3_70b.py:np-dpo-full"
    found = compile_for_tpu(config, "v5e:16x16")
    assert not found["fits"] and found["step_seconds"] is None
    assert "--config.mesh.fsdp=64 --config.mesh.tensor=4 " in found["advice"][0]
    memory = found["memory"]
    # Parameters, their average and two moments in float32.
    assert memory["arguments"] == pytest.approx(16 * 70.6e9 / 256, rel=0.05)
    assert memory["peak"] == memory["arguments"] + memory["temporary"] > memory["hbm"]


@pytest.mark.parametrize("size", ["qwen2_0_5b", "qwen2_1_5b", "qwen2_7b", "llama3_70b"])
@pytest.mark.parametrize("arg", ["np-dpo", "np-dpo-full", "dpo", "dpo-full"])
def test_shipped_sizes_have_the_parameters_of_their_name(size, arg):
    module = __import__(f"experiments.policy.{size}", fromlist=["get_config"])
    config = resolve(module.get_config(arg), num_devices=256)
    run = abstract.abstract_run(config)
    trained = run.variables["params"].get("base", {})
    base = run.constants["base"] or trained
    count = sum(x.size for x in jax.tree.leaves(base))
    # Of their model cards: 0.49, 1.54, 7.61 and 70.6 billion.
    cards = {"0_5b": 0.494, "1_5b": 1.544, "7b": 7.616, "70b": 70.554}
    assert count / 1e9 == pytest.approx(cards[size.split("_", 1)[1]], abs=1e-3)
    assert bool(trained) == arg.endswith("-full")
