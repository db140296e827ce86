"""Safetensors files as they are written: shards, dtypes, order, memory layout."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fsa.language.huggingface import safetensors_writer


def tensors():
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(5, 7)).astype(np.float32),
        "b.c": rng.normal(size=(3,)).astype(jnp.bfloat16),
        "b.d": rng.normal(size=(2, 3, 5)).astype(np.float16),
        "e": np.zeros((0, 4), np.float32),
    }


def write(folder, values, read=None, **options):
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in values.items()}
    safetensors_writer.write(folder, shapes, read or values.__getitem__, **options)


def assert_equal(found, values):
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_the_library_reads_one_file(tmp_path):
    write(tmp_path, tensors())
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert_equal(load_file(tmp_path / "model.safetensors"), tensors())


def test_the_library_reads_shards_through_the_index(tmp_path):
    # 140, 6, 60 and 0 bytes: the first two fit together exactly.
    write(tmp_path, tensors(), shard_bytes=146)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    assert index == {
        "metadata": {"total_size": 206},
        "weight_map": {"a": first, "b.c": first, "b.d": second, "e": second},
    }
    found = {}
    for file in (first, second):
        found |= load_file(tmp_path / file)
    assert_equal(found, tensors())


def test_a_large_tensor_has_a_shard_of_its_own(tmp_path):
    write(tmp_path, tensors(), shard_bytes=1)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 4


def test_tensors_are_read_once_and_in_order(tmp_path):
    asked = []

    def read(name):
        asked.append(name)
        return tensors()[name]

    write(tmp_path, tensors(), read)
    assert asked == list(tensors())


@pytest.mark.parametrize("shard_bytes", [10**9, 100, 1])
def test_processes_that_do_not_write_read_in_the_same_order(tmp_path, shard_bytes):
    orders = []
    for folder in (tmp_path, None):
        asked = []

        def read(name, asked=asked):
            asked.append(name)
            return tensors()[name]

        write(folder, tensors(), read, shard_bytes=shard_bytes)
        orders.append(asked)
    assert orders[0] == orders[1] and sorted(orders[0]) == sorted(tensors())


def test_transposed_tensors_are_written_in_their_own_order(tmp_path):
    values = {"a": tensors()["a"].T}
    write(tmp_path, values)
    assert_equal(load_file(tmp_path / "model.safetensors"), values)
