"""Adapters in the form of PEFT: written, read, refused if of another model."""

import json
import os
import stat

import numpy as np
import policies
import pytest
from safetensors.numpy import load_file, save_file

from fsa.conditioning.adapters import Lora
from fsa.errors import InputError
from fsa.language.huggingface import peft, weights

DOWN, QUERY = "params/layers/mlp/down/kernel", "params/layers/attention/query/kernel"
LAYERS, WIDTH, MLP, HEADS = 2, 16, 20, 24


@pytest.fixture(scope="module")
def parameters():
    return weights.parameters_of(policies.language_model()[0])


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


ADAPTER = {
    DOWN: Lora(numbers(LAYERS, MLP, 3), numbers(LAYERS, 3, WIDTH, seed=1)),
    QUERY: Lora(numbers(LAYERS, WIDTH, 2, seed=2), numbers(LAYERS, 2, HEADS, seed=3)),
}


@pytest.fixture
def folder(tmp_path, parameters):
    folder = tmp_path / "adapter"
    peft.save(folder, ADAPTER, parameters, base_model="the-base", origin={"z": [1.5]})
    return folder


def test_files_are_as_peft_has_them(folder):
    config = json.loads((folder / peft.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 8)
    assert config["target_modules"] == ["down_proj", "q_proj"]
    assert config["base_model_name_or_path"] == "the-base"
    assert json.loads((folder / "fsa.json").read_text()) == {"z": [1.5]}
    tensors = load_file(folder / peft.TENSORS)
    assert len(tensors) == 2 * 2 * LAYERS
    of = "base_model.model.model.layers.1.mlp.down_proj."
    update = tensors[of + "lora_B.weight"] @ tensors[of + "lora_A.weight"]
    assert update.shape == (WIDTH, MLP)
    down = ADAPTER[DOWN]
    np.testing.assert_allclose(update.T, down.a[1] @ down.b[1], rtol=1e-5, atol=1e-6)


def test_others_may_read_the_files(tmp_path, parameters):
    before = os.umask(0o022)
    try:
        peft.save(tmp_path / "a", ADAPTER, parameters, base_model="")
        policies.write_language_model(tmp_path / "model")
    finally:
        os.umask(before)
    for file in (*(tmp_path / "a").iterdir(), *(tmp_path / "model").iterdir()):
        assert stat.S_IMODE(file.stat().st_mode) == 0o644, file


def test_what_is_written_is_read(folder, parameters):
    found = peft.load(folder, parameters)
    assert found.keys() == ADAPTER.keys()
    for path, lora in ADAPTER.items():
        # In float64, where the order of sums does not matter.
        update, expected = (
            np.asarray(x.a, float) @ np.asarray(x.b, float) for x in (found[path], lora)
        )
        np.testing.assert_allclose(update, expected, rtol=1e-5)


def test_scale_and_missing_layers_of_foreign_adapters(folder, parameters):
    """As PEFT writes them where `layers_to_transform` leaves some out."""
    config = json.loads((folder / peft.CONFIG).read_text())
    (folder / peft.CONFIG).write_text(json.dumps({**config, "lora_alpha": 16}))
    tensors = load_file(folder / peft.TENSORS)
    kept = {name: x for name, x in tensors.items() if ".layers.0." in name}
    save_file(kept, folder / peft.TENSORS)
    found = peft.load(folder, parameters)[DOWN]
    update = np.asarray(found.a) @ np.asarray(found.b)
    down = ADAPTER[DOWN]
    np.testing.assert_allclose(update[0], 2 * down.a[0] @ down.b[0], rtol=1e-4)
    assert not update[1].any()


def without_b(tensors):
    return {name: x for name, x in tensors.items() if "lora_B" not in name}


def of_another_width(tensors):
    return {name: x[:, :-1] if "lora_A" in name else x for name, x in tensors.items()}


def without_a(tensors):
    return {name: x for name, x in tensors.items() if "lora_A" not in name}


def of_another_rank(tensors):
    return {name: x[:, :-1] if "lora_B" in name else x for name, x in tensors.items()}


def of_one_axis(tensors):
    return {name: x[0] if "lora_B" in name else x for name, x in tensors.items()}


def of_another_layer(tensors):
    return {name.replace(".1.", ".7."): x for name, x in tensors.items()}


@pytest.mark.parametrize(
    "change",
    [
        without_a,
        without_b,
        of_another_rank,
        of_another_width,
        of_another_layer,
        of_one_axis,
    ],
)
def test_tensors_of_another_model(folder, parameters, change):
    file = folder / peft.TENSORS
    save_file({k: x.copy() for k, x in change(load_file(file)).items()}, file)
    with pytest.raises(InputError, match=peft.TENSORS):
        peft.load(folder, parameters)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (peft.CONFIG, b"{"),
        (peft.CONFIG, b"[]"),
        (peft.CONFIG, b'{"peft_type": "LORA", "r": 0, "lora_alpha": 8}'),
        (peft.CONFIG, b'{"peft_type": "LOHA", "r": 8, "lora_alpha": 8}'),
        (peft.CONFIG, b'{"peft_type": "LORA", "r": 8, "lora_alpha": 8, "use_dora": 1}'),
        (peft.CONFIG, None),
        (peft.TENSORS, b"nothing"),
        (peft.TENSORS, None),
    ],
)
def test_damaged_files(folder, parameters, name, content):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        peft.load(folder, parameters)


def test_what_cannot_be_written(folder, parameters, tmp_path):
    with pytest.raises(InputError, match="exists"):
        peft.save(folder, ADAPTER, parameters, base_model="")
    wide = Lora(numbers(LAYERS, MLP, 513), numbers(LAYERS, 513, WIDTH))
    with pytest.raises(InputError, match="513"):
        peft.save(tmp_path / "wide", {DOWN: wide}, parameters, base_model="")
    assert not (tmp_path / "wide").exists()
