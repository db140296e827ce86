"""PEFT computes, with an adapter that fsa wrote, what fsa computes at that z.

How to run it by hand is in conftest.py.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import policies
import pytest

from fsa.conditioning import adapters
from fsa.language import huggingface
from fsa.language.huggingface import peft, weights
from fsa.models.policy import Policy, spec_of
from fsa.models.reward import RewardModel

pytestmark = pytest.mark.engine

GOLDEN = pathlib.Path(__file__).parents[1] / "language" / "golden"
LOW_RANKS = (
    ("attention/query", "low_rank(2)"),
    ("attention/out", "low_rank(8)"),
    ("mlp/gate", "lora(3)"),
    ("mlp/down", "low_rank(8)"),
)
THEIRS = """
import json, sys
import numpy, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
tokens = json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
tokens = torch.tensor(tokens)
with torch.no_grad():
    plain = model(tokens).logits
    adapted = PeftModel.from_pretrained(model, adapter).eval()(tokens).logits
numpy.savez(out, plain=plain.numpy(), adapted=adapted.numpy())
"""


@pytest.fixture
def folder(request):
    """The folder of a model, of those beside this file or elsewhere."""
    if request.param == "stories260K":
        return request.getfixturevalue("shared_data") / request.param
    if request.param == "SmolLM2":
        return request.getfixturevalue("smollm2")
    return GOLDEN / request.param


@pytest.mark.parametrize(
    "folder", ["llama", "qwen2", "gemma2", "stories260K", "SmolLM2"], indirect=True
)
def test_logits(folder, engine, tmp_path):
    model, base = huggingface.load(folder, dtype="float32")
    policy = Policy(model, RewardModel(**policies.REWARD), LOW_RANKS)
    shapes = jax.eval_shape(lambda: policy.init(jax.random.key(0), base, model.width))
    variables = policies.noisy(shapes, 1, std=0.2)
    z = jnp.asarray(np.random.default_rng(0).normal(size=3), jnp.float32)
    modulations = policy.hypernet.apply(variables["params"]["hyper"], z)
    adapter = adapters.to_lora(spec_of(LOW_RANKS), base, modulations)
    parameters = weights.parameters_of(model)
    peft.save(tmp_path / "adapter", adapter, parameters, base_model=str(folder))

    tokens = np.random.default_rng(1).integers(3, 60, (2, 24))
    paths = folder, tmp_path / "adapter", tmp_path / "found.npz"
    engine(THEIRS, tokens.tolist(), *paths)
    theirs = np.load(tmp_path / "found.npz")
    ours = policies.logits(model, base, tokens)
    conditioned = policies._folded(policy, variables, base, z)
    adapted = policies.logits(model, conditioned, tokens)
    least = np.abs(ours - theirs["plain"]).max()
    found = np.abs(adapted - theirs["adapted"]).max()
    assert np.abs(adapted - ours).max() > 0.5
    assert found <= 1.5 * least + 1e-5 * np.abs(adapted).max(), (found, least)
