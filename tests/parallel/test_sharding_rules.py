"""Meshes and sharding rules; one device is enough, as shardings are only computed."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wide
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fsa.errors import InputError
from fsa.language import transformer
from fsa.models import policy, reward
from fsa.parallel import sharding
from fsa.parallel.sharding import AXES, DATA, FSDP, TENSOR
from fsa.training.step import init_state, make_optimizer

MESH = AbstractMesh((2, 4, 2), AXES)


def specs(tree, rules, mesh=MESH):
    """The spec of each array of a tree of shapes, by its path."""
    shapes = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, "f4"),
        tree,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    return by_path(sharding.shardings(shapes, mesh, rules))


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        sharding.path_of(path): x.spec if isinstance(x, NamedSharding) else x
        for path, x in leaves
    }


def test_the_first_pattern_that_is_found_decides():
    rules = [("inner/kernel$", P(FSDP)), ("kernel", P(None, TENSOR))]
    tree = {"inner": {"kernel": (8, 6)}, "outer": {"kernel": (8, 6), "bias": (8,)}}
    assert specs(tree, rules) == {
        "inner/kernel": P(FSDP),
        "outer/kernel": P(None, TENSOR),
        "outer/bias": P(),
    }


@pytest.mark.parametrize(
    ("shape", "spec", "fitted"),
    [
        ((8, 6), P(FSDP, TENSOR), P(FSDP, TENSOR)),
        ((6, 6), P(FSDP, TENSOR), P(None, TENSOR)),
        ((8, 5), P(FSDP, TENSOR), P(FSDP)),
        ((1, 8), P(TENSOR, FSDP), P(None, FSDP)),
        # As many axes as divide.
        ((8,), P((TENSOR, FSDP)), P((TENSOR, FSDP))),
        ((6,), P((TENSOR, FSDP)), P(TENSOR)),
        ((5,), P((TENSOR, FSDP)), P()),
        # Factored moments have fewer axes than their parameter.
        ((8,), P(FSDP, TENSOR), P()),
        ((8, 6, 3), P(FSDP), P(FSDP)),
    ],
)
def test_axes_that_do_not_divide_are_left_out(shape, spec, fitted):
    assert specs({"x": shape}, [("x", spec)]) == {"x": fitted}


def test_an_axis_that_is_left_out_is_named_once():
    rules = [("kernel", P(FSDP, TENSOR))]
    arrays = {name: {"kernel": np.zeros((6, 4))} for name in "ab"}
    arrays["c"] = {"kernel": np.zeros((1, 4))}
    (line,) = sharding.not_split(arrays, MESH, rules)
    assert all(part in line for part in ("kernel", "fsdp", " 6 "))
    alone = AbstractMesh((16, 1, 1), AXES)
    assert sharding.not_split(arrays, alone, rules) == []
    assert specs({"kernel": (6, 4)}, rules, alone) == {"kernel": P()}


@pytest.mark.parametrize(
    ("shape", "fitted", "lines"),
    [
        ((8, 4), P((TENSOR, FSDP)), 0),
        ((6, 4), P(TENSOR, FSDP), 0),
        ((6, 6), P(TENSOR), 1),
    ],
)
def test_a_repeated_pattern_gives_a_second_choice(shape, fitted, lines):
    """It is used if the first does not divide all dimensions, and the second does."""
    rules = [
        ("embedding", P((TENSOR, FSDP))),
        ("embedding", P(TENSOR, FSDP)),
        ("em", P(None, TENSOR)),
    ]
    assert specs({"embedding": shape}, rules) == {"embedding": fitted}
    arrays = {"embedding": np.zeros(shape)}
    assert len(sharding.not_split(arrays, MESH, rules)) == lines


def test_state_follows_its_parameter():
    """Both moments and the average have the sharding of their parameter."""
    variables = wide.policy_shapes()
    optimizer = make_optimizer(learning_rate=1.0, steps=2, warmup_steps=1)
    state = jax.eval_shape(lambda v: init_state(v, optimizer), variables)
    found = by_path(sharding.shardings(state, MESH, policy.SHARDING_RULES))
    params = {
        name.removeprefix("params/"): spec
        for name, spec in found.items()
        if name.startswith("params/")
    }
    assert len(set(params.values())) > 5
    for prefix in ("average", "opt_state/1/0/mu", "opt_state/1/0/nu"):
        for name, spec in params.items():
            assert found[f"{prefix}/{name}"] == spec


@pytest.mark.parametrize(
    ("sizes", "prefix"), [((1, 16, 1), "params/"), ((1, 1, 16), "params/base/")]
)
def test_every_weight_has_a_rule(sizes, prefix):
    """Trained weights are split over fsdp, the language model over tensor."""
    shapes = wide.policy_shapes()
    mesh = AbstractMesh(sizes, AXES)
    placed = by_path(sharding.shardings(shapes, mesh, policy.SHARDING_RULES))
    large = [
        name
        for name, x in by_path(shapes).items()
        if name.startswith(prefix) and math.prod(x.shape) >= 256
    ]
    assert len(large) > 8
    assert [name for name in large if not any(placed[name])] == []


def test_a_policy_has_the_rules_of_its_parts():
    assert set(transformer.SHARDING_RULES) <= set(policy.SHARDING_RULES)
    assert set(reward.SHARDING_RULES) <= set(policy.SHARDING_RULES)


@pytest.mark.parametrize(("fsdp", "tensor"), [(3, 1), (2, 4), (8, 2)])
def test_sizes_that_do_not_divide_the_devices(fsdp, tensor):
    devices = [Device(i, 0) for i in range(4)]
    with pytest.raises(InputError, match=f"`fsdp`={fsdp} .*`tensor`={tensor}"):
        sharding.make_mesh(fsdp, tensor, devices)


@dataclasses.dataclass(frozen=True)
class Device:
    """The fields of a device that `make_mesh` reads."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    process_index: int = 0


def arranged(fsdp, tensor, devices):
    return np.vectorize(lambda device: device.slice_index)(
        sharding.device_array((len(devices) // fsdp // tensor, fsdp, tensor), devices)
    )


def test_only_data_extends_over_slices():
    """In any order of the devices; fsdp does so only if it has to."""
    devices = [Device(i, i % 2) for i in range(8)]
    slices = arranged(2, 2, devices)
    assert slices.shape == (2, 2, 2)
    assert [np.unique(part).tolist() for part in slices] == [[0], [1]]
    assert np.unique(arranged(8, 1, devices)).tolist() == [0, 1]


def test_batches_that_cannot_be_split_are_refused():
    shape = {DATA: 2, FSDP: 2, TENSOR: 2}
    sharding.check_batch_size(8, shape)
    sharding.check_batch_size(8, shape, accumulate=2)
    with pytest.raises(InputError, match="`batch_size`=6"):
        sharding.check_batch_size(6, shape)
    with pytest.raises(InputError, match="`accumulate`=4"):
        sharding.check_batch_size(8, shape, accumulate=4)


def test_without_a_mesh_nothing_is_constrained():
    x = jnp.ones((2, 3))
    assert sharding.constrain(x, TENSOR) is x
    assert sharding.replicated(x) is x
