"""Dry runs of a small step: memory and FLOPs in closed form, and what does not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fsa.cost_model import chips
from fsa.cost_model.compile_step import compile_step, find_devices, temporary_bytes
from fsa.errors import InputError

EXAMPLES, WIDTH, HIDDEN = 11, 7, 5
# One product forward, and two backward.
FLOPS = 3 * 2 * EXAMPLES * WIDTH * HIDDEN
ADVICE = ("use more chips",)


def step(weights, x):
    def loss(weights, x):
        return jnp.sum((x @ weights) ** 2)

    gradients = jax.grad(loss, argnums=(0, 1))(weights, x)
    return jax.tree.map(lambda x, g: x - 0.1 * g, (weights, x), gradients)


def compiled(**keywords):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec())
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        for shape in ((WIDTH, HIDDEN), (EXAMPLES, WIDTH))
    ]
    return compile_step(
        jax.jit(step),
        arguments,
        mesh=mesh.shape,
        useful_flops=FLOPS,
        advice=ADVICE,
        **keywords,
    )


def test_arguments_and_flops_are_those_of_the_closed_form():
    texts = []
    result = compiled(keep=texts.append)
    assert result.memory.arguments == 4 * (WIDTH * HIDDEN + EXAMPLES * WIDTH)
    assert result.costs.flops == result.useful_flops == FLOPS
    assert result.chips == 1 and not result.advice
    # No chip is known, so neither is whether it fits.
    assert result.fits is None
    assert result.memory.hbm is None and result.seconds is None
    (text,) = texts
    assert text.startswith("HloModule")


@pytest.mark.parametrize("missing", [0, 1])
def test_a_compiled_step_fits_if_its_arguments_fit_too(missing):
    """To the byte; the compiler itself does not count arguments."""
    peak = compiled().memory.peak
    chip = dataclasses.replace(chips.CHIPS["v5e"], hbm=peak - missing)
    result = compiled(chip=chip)
    assert result.fits == (not missing)
    assert result.advice == (ADVICE if missing else ())
    assert result.costs is not None


def test_figures_of_a_chip_are_those_of_all_its_devices():
    """A v4 has two; the program that is compiled does not depend on the mesh."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    result = compile_step(
        jax.jit(lambda x: x + 1),
        [jax.ShapeDtypeStruct((3,), "f4", sharding=sharding)],
        mesh={"data": 4},
        useful_flops=100,
        chip=chips.CHIPS["v4"],
    )
    assert result.chips == 2 and result.useful_flops == 50
    assert result.memory.arguments == 2 * 3 * 4


class OutOfMemory:
    """A jitted function that the compiler refuses."""

    def __init__(self, message):
        self._message = message

    def trace(self, *arguments):
        return self

    def lower(self):
        return self

    def compile(self):
        raise jax.errors.JaxRuntimeError(self._message)


def refused(message):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return compile_step(
        OutOfMemory(message),
        [jax.ShapeDtypeStruct((5, 3), "f4", sharding=sharding)],
        mesh={"data": 1},
        useful_flops=1,
        chip=chips.CHIPS["v5e"],
        advice=ADVICE,
    )


def test_what_the_compiler_refuses_does_not_fit():
    result = refused("RESOURCE_EXHAUSTED: ... HLO temporaries (19.51G) exceeds ...")
    assert result.fits is False and result.costs is None and result.advice == ADVICE
    memory = result.memory
    assert memory.arguments == 60 and memory.temporary == 19.51 * 2**30
    assert memory.peak == memory.arguments + memory.temporary > memory.hbm


def test_other_errors_of_the_compiler_are_raised():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        refused("INTERNAL: a bug")


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
def test_temporary_memory_is_read_from_the_compilers_message(message, wanted):
    assert temporary_bytes(message, 1000) == pytest.approx(wanted)


def test_local_devices_are_those_of_this_machine():
    assert find_devices("local") == (jax.devices(), None)


@pytest.mark.parametrize(
    ("topology", "slices", "name"),
    [
        ("v5e:3x3", 1, "`topology`"),
        ("v5e", 1, "`topology`"),
        ("h100:8", 1, "`topology`"),
        # The bandwidth between slices of v6e is not published.
        ("v6e:16x16", 2, "`slices`"),
        ("local", 2, "`slices`"),
    ],
)
def test_topologies_that_are_not_sold_are_refused(topology, slices, name):
    with pytest.raises(InputError, match=name):
        find_devices(topology, slices)
