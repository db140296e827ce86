"""Functions of examples on a mesh; tests/commands has them on many devices."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsa.errors import InputError
from fsa.parallel import examples
from fsa.parallel.sharding import make_mesh
from fsa.recipes.config import mesh_sizes

WEIGHTS = np.arange(6.0, dtype=np.float32).reshape(2, 3)


def run_on(mesh, size, **options):
    """What a product of examples and shared weights gives, with a scalar each."""

    def fn(weights, factor, pair):
        x, y = pair
        return {"product": factor * (x @ weights), "sum": jnp.sum(x, -1) + y}

    rng = np.random.default_rng(size)
    x, y = np.float32(rng.normal(size=(size, 2))), np.float32(rng.normal(size=size))
    found = examples.over_examples(fn, mesh, **options)(WEIGHTS, 2.0, (x, y))
    return found, {"product": 2 * (x @ WEIGHTS), "sum": x.sum(-1) + y}


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("meshed", [False, True])
def test_results_are_those_of_the_function(size, apart, meshed):
    mesh = make_mesh(devices=jax.devices()[:1]) if meshed else None
    found, wanted = run_on(mesh, size, apart=apart)
    for name, value in wanted.items():
        assert isinstance(found[name], np.ndarray)
        np.testing.assert_allclose(found[name], value, 1e-6)


def test_examples_are_filled_up_by_the_first():
    x, y = np.arange(6).reshape(3, 2), np.arange(3.0)
    filled = examples.filled_up({"x": x, "y": y}, 5)
    np.testing.assert_array_equal(filled["x"], x[[0, 1, 2, 0, 0]])
    np.testing.assert_array_equal(filled["y"], y[[0, 1, 2, 0, 0]])
    assert examples.filled_up(x, 3) is x


def test_one_device_needs_no_mesh():
    with mock.patch.object(jax, "devices", lambda: jax.local_devices()[:1]):
        assert examples.find_mesh() is None
        with pytest.raises(InputError, match="`fsdp`=2"):
            examples.find_mesh(fsdp=2)
    assert examples.parts_of(None) == 1


@pytest.mark.parametrize(
    ("trained", "given", "found"),
    [
        ({"fsdp": 2, "tensor": 2}, {}, {"fsdp": 2, "tensor": 2}),
        # A pod's sizes, of which this machine has not as many devices.
        ({"fsdp": 16, "tensor": 1}, {}, {"fsdp": 1, "tensor": 1}),
        ({"fsdp": 3, "tensor": 1}, {}, {"fsdp": 1, "tensor": 1}),
        (None, {}, {"fsdp": 1, "tensor": 1}),
        ({"fsdp": 2, "tensor": 2}, {"tensor": 4}, {"fsdp": 1, "tensor": 4}),
        ({"fsdp": 3, "tensor": 1}, {"fsdp": 8}, {"fsdp": 8, "tensor": 1}),
    ],
)
def test_sizes_of_the_training_count_where_none_are_given(trained, given, found):
    config = {} if trained is None else {"mesh": trained}
    with mock.patch.object(jax, "device_count", lambda: 8):
        assert mesh_sizes(config, **given) == found


def test_sizes_that_do_not_divide_the_devices():
    with (
        mock.patch.object(jax, "device_count", lambda: 8),
        pytest.raises(InputError, match="`fsdp`=3 times `tensor`=2 does not divide"),
    ):
        mesh_sizes({"mesh": {"fsdp": 8, "tensor": 1}}, fsdp=3, tensor=2)
