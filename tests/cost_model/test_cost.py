"""Counts against closed forms, on programs that XLA for CPU compiles here."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from fsa.cost_model import cost
from fsa.language.transformer import Transformer

ONE = {"data": 1}
SCRIPT = pathlib.Path(__file__).with_name("sharded_step.py")
REPOSITORY = SCRIPT.parents[2]


def compiled(fn, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(fn).lower(*arguments).compile().as_text()


def layers(x, weights, unroll):
    def layer(x, w):
        return jnp.tanh(x @ w), None

    return jax.lax.scan(layer, x, weights, unroll=unroll)[0].sum()


@pytest.mark.parametrize("num_layers", [2, 7])
def test_a_scanned_model_costs_what_the_unrolled_one_does(num_layers):
    gradient = jax.grad(layers, argnums=1)
    counts = [
        cost.count(
            compiled(lambda x, w, u=u: gradient(x, w, u), (3, 5), (num_layers, 5, 5)),
            ONE,
        )
        for u in (1, num_layers)
    ]
    # One product forward, and two backward. The first layer's input needs no gradient,
    # but the loop's body computes it for every layer.
    product = 2 * 3 * 5 * 5
    assert counts[0].flops == 3 * num_layers * product
    assert counts[1].flops == (3 * num_layers - 1) * product
    assert not counts[0].unknown_loops


def test_loops_within_loops_multiply():
    def nested(x, w):
        def outer(i, x):
            return jax.lax.fori_loop(0, 3, lambda j, x: jnp.tanh(x @ w), x)

        return jax.lax.fori_loop(2, 7, outer, x)

    counted = cost.count(compiled(nested, (3, 5), (5, 5)), ONE)
    assert counted.flops == 5 * 3 * 2 * 3 * 5 * 5


def test_a_loop_of_unknown_length_is_named_and_counts_once():
    def search(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)

    counted = cost.count(compiled(search, (3, 5), (5, 5)), ONE)
    assert len(counted.unknown_loops) == 1
    assert counted.flops == 2 * 3 * 5 * 5


def test_the_costlier_branch_counts():
    def branched(x, w):
        def two():
            return x @ w @ w

        return jax.lax.cond(x[0, 0] > 0, two, lambda: x @ w)

    assert cost.count(compiled(branched, (3, 5), (5, 5)), ONE).flops == 4 * 3 * 5 * 5


def test_batched_products_count_each_batch_once():
    def heads(q, k):
        return jnp.einsum("bthd,bshd->bhts", q, k)

    counted = cost.count(compiled(heads, (2, 5, 3, 7), (2, 11, 3, 7)), ONE)
    assert counted.flops == 2 * 2 * 3 * 5 * 11 * 7


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_transformer_forward_is_its_closed_form(tied):
    batch, length, vocab, width, hidden, depth = 2, 16, 40, 12, 20, 3
    heads, kv_heads, head_dim = 4, 2, 6
    model = Transformer(
        vocab, width, depth, heads, kv_heads, head_dim, hidden, tied=tied
    )
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    program = jax.jit(lambda v, t: model.apply(v, t)[0]).lower(variables, tokens)
    projections = width * head_dim * (2 * heads + 2 * kv_heads) + 3 * width * hidden
    attention = 2 * length * heads * head_dim
    per_token = depth * (projections + attention) + width * vocab
    counted = cost.count(program.compile().as_text(), ONE)
    assert counted.flops == 2 * batch * length * per_token


def test_only_the_slice_that_a_loop_takes_of_its_weights_is_traffic():
    def counted(num_layers):
        text = compiled(lambda x, w: layers(x, w, 1), (8, 64), (num_layers, 64, 64))
        return cost.count(text, ONE).bytes

    # If every layer read the stack, traffic would grow with the square of its height.
    assert counted(64) / counted(16) == pytest.approx(4, rel=0.1)
    assert counted(64) >= 64 * 64 * 64 * 4


def run_sharded(topology, **environment):
    """(bytes that the step of sharded_step.py sends, bytes that theory expects)."""
    run = [sys.executable, str(SCRIPT), topology]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(REPOSITORY),
        **environment,
    }
    done = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return found["sent"], found["expected"]


def test_collectives_on_cpu_are_those_of_theory():
    flags = os.environ.get("XLA_FLAGS", "")
    devices = f"{flags} --xla_force_host_platform_device_count=8"
    sent, expected = run_sharded("local", XLA_FLAGS=devices)
    assert sent == {
        "fsdp all-gather": expected["gathered"],
        # XLA for CPU has no reduce-scatter, and an all-reduce sends twice as much.
        "fsdp all-reduce": 2 * expected["scattered"],
        "data all-reduce": expected["reduced"],
        "tensor all-reduce": expected["activations"],
    }


@pytest.mark.tpu
def test_collectives_on_tpu_are_those_of_theory():
    pytest.importorskip("libtpu")
    sent, expected = run_sharded("v5e:2x4")
    assert sent == {
        # Products are in bfloat16, and so are the weights that are gathered for them.
        "fsdp all-gather": expected["gathered"] / 2,
        "fsdp reduce-scatter": expected["scattered"],
        "data all-reduce": expected["reduced"],
        "tensor all-reduce": expected["activations"],
    }
