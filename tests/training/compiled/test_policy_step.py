"""What the real training step of a policy sends, in text compiled for TPU."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

WIDTH, HIDDEN, LAYERS, HEADS, HEAD, VOCABULARY, FSDP = (
    2048,
    8192,
    3,
    16,
    128,
    32_768,
    32,
)

CONFIG = f"""
from experiments.policy.pods import qwen2, steered


def get_config():
    shape = qwen2(
        width={WIDTH}, mlp_width={HIDDEN}, layers={LAYERS}, heads={HEADS},
        kv_heads={HEADS}, vocab={VOCABULARY},
    )
    config = steered("np-dpo-full", "none", shape, fsdp={FSDP})
    config.language_model.attention = "xla"
    config.train.batch_size = {FSDP}
    return config
"""


@pytest.mark.tpu
def test_weights_are_gathered_and_their_gradients_scattered_as_in_theory(tmp_path):
    """Bytes within 15%, trip counts included; nothing else is as large as a weight."""
    pytest.importorskip("libtpu")
    config, out = tmp_path / "config.py", tmp_path / "found.json"
    config.write_text(CONFIG)
    subprocess.run(
        [
            *(sys.executable, "-m", "launch.compile", "--topology=v5e:4x8"),
            *(f"--config={config}", f"--out={out}"),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
    layer = WIDTH * (4 * HEADS * HEAD + 3 * HIDDEN)
    ends = 2 * VOCABULARY * WIDTH
    # Layers are gathered twice, as they are computed twice, and all is in bfloat16.
    gathered, scattered = 2 * LAYERS * layer + ends, LAYERS * layer + ends
    wanted = 2 * (gathered + scattered) * (FSDP - 1) / FSDP
    found = json.loads(out.read_text())["collectives"]
    assert {each["axis"] for each in found} == {"fsdp"}
    assert sum(each["bytes"] for each in found) == pytest.approx(wanted, rel=0.15)
    # XLA also gathers and scatters by passing parts around while it multiplies.
    smallest = 2 * WIDTH * HEADS * HEAD
    large = {each["kind"] for each in found if each["largest"] >= smallest}
    assert large == {"all-gather", "reduce-scatter"}
