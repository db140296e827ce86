"""Dry runs: the real step in shapes alone."""

import json
import re

import jax
import numpy as np
import pytest
from policies import flags, tiny_policy_config, write_all

from fsa.errors import InputError
from fsa.language.huggingface import architecture
from fsa.recipes import policy_run
from fsa.recipes.config import resolve
from fsa.recipes.dry_run import EVALUATE, WRITE, dry_run

pytestmark = pytest.mark.usefixtures("quick_compile")

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
    "variant, train_base",
    [("np-dpo", False), pytest.param("dpo-by-group", True, marks=pytest.mark.slow)],
)
def test_abstract_runs_are_real_ones_in_shape(folder, variant, train_base):
    config = tiny_policy_config(
        folder, variant, **{"policy.train_base": train_base, "task.buckets": (20,)}
    )
    real = policy_run.build(config, jax.random.key(0), jax.random.key(1))
    found = policy_run.abstract(config)
    assert shapes(found.variables) == shapes(real.variables)
    assert shapes(found.constants) == shapes(real.constants)
    positions = np.arange(config["train"]["batch_size"], dtype=np.int32)
    assert shapes(found.examples) == shapes(real.make_examples(0, positions))
    assert found.sharding_rules is real.sharding_rules


def test_shapes_in_a_config_stand_for_the_folder(folder):
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in architecture.read_config(folder / "language").items()
    }
    by_folder = policy_run.abstract(tiny_policy_config(folder))
    by_shape = policy_run.abstract(
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
        policy_run.abstract(config)


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
    assert found["chips"] == 1 and found["collectives"] == []
    # Nothing is known of this machine's chips.
    assert found["step_seconds"] is None and found["mfu"] is None
    assert found["fits"] is None and found["memory"]["hbm"] is None
    (line,) = re.findall("FLOPs .*", ended.out)
    assert line.split()[3] == f"{found['flops']:.4g};"
    assert "It fits." not in ended.out


@pytest.mark.slow
def test_arguments_and_flops_are_those_of_the_closed_form(folder):
    config = tiny_policy_config(folder, "np-dpo")
    found = dry_run(config, jax.devices(), None)
    run = policy_run.abstract(config)
    weights, examples = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
        for tree in ((run.constants, run.variables["statistics"]), run.examples)
    )
    trained = sum(x.size * 4 for x in jax.tree.leaves(run.variables["params"]))
    # Parameters, their average and two moments; steps and the key are a few bytes, and
    # what no step reads of the examples, as users' groups, is left out.
    total = weights + examples + 4 * trained
    assert found.memory.arguments == pytest.approx(total, rel=0.01)
    # Forward and the gradients of activations, not those of frozen weights.
    assert found.useful_flops < found.costs.flops < 1.5 * found.useful_flops


@pytest.mark.parametrize(
    "step", [EVALUATE, pytest.param(WRITE, marks=pytest.mark.slow)]
)
def test_what_is_done_after_training_has_a_dry_run(folder, step):
    """Its arguments are the weights, once, and examples, which are small."""
    config = tiny_policy_config(folder, "np-dpo")
    found = dry_run(config, jax.devices(), None, step=step, texts=2)
    run = policy_run.abstract(config)
    trees = run.variables, run.constants
    if step == WRITE:
        # z is given, so nothing asks the reward model.
        trees = run.variables["params"]["hyper"], run.constants
    weights = sum(4 * x.size for tree in trees for x in jax.tree.leaves(tree))
    assert weights < found.memory.arguments < 1.3 * weights
    assert found.costs.flops > 0 and found.useful_flops > 0


def test_only_policies_have_a_dry_run_after_training(tiny):
    with pytest.raises(InputError, match="`step`=evaluate: the config is not that"):
        dry_run(tiny(), jax.devices(), None, step=EVALUATE)


@pytest.mark.parametrize("topology", ["v5e:3x3", "v5e:32x32", "h100:8", "v5e"])
def test_topologies_that_nobody_sells_end_in_one_line(launch, topology):
    ended = launch(
        "compile",
        "--config=experiments/policy/qwen2_0_5b.py",
        f"--topology={topology}",
    )
    assert ended.code == 2
    assert f"--topology={topology}" in ended.err
    assert ended.err.count("\n") == 1


def test_slices_need_a_network_that_is_published(launch):
    ended = launch(
        "compile",
        "--config=experiments/policy/qwen2_0_5b.py",
        "--topology=v6e:16x16",
        "--slices=2",
    )
    assert ended.code == 2 and "--slices=2" in ended.err


@pytest.mark.tpu
def test_a_step_that_does_not_fit_is_a_verdict(compile_for_tpu):
    """The real compiler refuses to train all of a 70B on 256 chips of 16 GiB."""
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
    run = policy_run.abstract(config)
    trained = run.variables["params"].get("base", {})
    base = run.constants["base"] or trained
    count = sum(x.size for x in jax.tree.leaves(base))
    # Of their model cards: 0.49, 1.54, 7.61 and 70.6 billion.
    cards = {"0_5b": 0.494, "1_5b": 1.544, "7b": 7.616, "70b": 70.554}
    assert count / 1e9 == pytest.approx(cards[size.split("_", 1)[1]], abs=1e-3)
    assert bool(trained) == arg.endswith("-full")
