"""Communication and memory of a policy's steps that are compiled for TPU."""

import pytest

WIDTH, HIDDEN, VOCABULARY = 2048, 8192, 32_768
LAYERS, HEADS, HEAD = 3, 16, 128
FSDP = 32

CONFIG = f"""
from experiments.policy.pods import qwen2, steered


def get_config():
    shape = qwen2(
        width={WIDTH}, mlp_width={HIDDEN}, layers={LAYERS}, heads={HEADS},
        kv_heads={HEADS}, vocab={VOCABULARY},
    )
    config = steered("np-dpo-full", "none", shape, fsdp={FSDP})
    config.language_model.attention = "xla"
    config.task.packing = "padded"
    config.train.batch_size = {FSDP}
    return config
"""


@pytest.mark.tpu
@pytest.mark.parametrize("in_rows", [False, True])
def test_weights_are_gathered_and_their_gradients_scattered_as_in_theory(
    tmp_path, compile_for_tpu, in_rows
):
    """Within 15%, trip counts included; nothing else sent is as large as a weight."""
    config = tmp_path / "config.py"
    text = CONFIG
    if in_rows:
        text = text.replace('"xla"', '"splash"').replace('"padded"', '"rows"')
    config.write_text(text)
    found = compile_for_tpu(config, "v5e:4x8")["collectives"]
    layer = WIDTH * (4 * HEADS * HEAD + 3 * HIDDEN)
    ends = 2 * VOCABULARY * WIDTH
    # Layers are gathered twice, as they are computed twice; all arrays are bfloat16.
    gathered, scattered = 2 * LAYERS * layer + ends, LAYERS * layer + ends
    wanted = 2 * (gathered + scattered) * (FSDP - 1) / FSDP
    assert {each["axis"] for each in found} == {"fsdp"}
    assert sum(each["bytes"] for each in found) == pytest.approx(wanted, rel=0.15)
    # XLA also gathers and scatters smaller parts while it multiplies.
    smallest = 2 * WIDTH * HEADS * HEAD
    large = {each["kind"] for each in found if each["largest"] >= smallest}
    assert large == {"all-gather", "reduce-scatter"}


@pytest.mark.tpu
@pytest.mark.parametrize("step", ["evaluate", "write"])
def test_weights_are_never_whole_on_a_chip_after_training(
    tmp_path, compile_for_tpu, step
):
    """Also not while a loop over tokens reads all of them for each."""
    config = tmp_path / "config.py"
    layers, chips = 16, 8
    small = CONFIG.replace(f"layers={LAYERS}", f"layers={layers}")
    small = small.replace(f"fsdp={FSDP}", f"fsdp={chips}").replace("-full", "")
    config.write_text(small)
    flags = ["--config.task.num_targets=1", "--config.eval.num_targets=1"]
    flags += ["--config.train.batch_size=8", "--batch_size=1"]
    found = compile_for_tpu(config, "v5e:2x4", f"--step={step}", *flags)
    layer = WIDTH * (4 * HEADS * HEAD + 3 * HIDDEN)
    ends = 2 * VOCABULARY * WIDTH
    weights = 2 * (layers * layer + ends)
    memory = found["memory"]
    assert memory["arguments"] == pytest.approx(weights / chips, rel=0.1)
    # The embedding and the unembedding are gathered, and a few layers at a time.
    assert memory["temporary"] < weights / 2
