"""Makes tests/language/golden: a tiny random model of each family, and its logits.

Needs PyTorch and transformers, which the tests do not:

    python tests/language/make_golden.py
"""

import pathlib
import sys

import numpy as np
import torch
import transformers

GOLDEN = pathlib.Path(__file__).parent / "golden"

# Sizes that differ, so that no swapped axis passes; heads are not width / num_heads.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
}
LENGTH = 19
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 2.5,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0}
LOCAL = {"rope_type": "default", "rope_theta": 10.0}

FAMILIES = {
    "llama": ("LlamaForCausalLM", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "llama3": ("LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "smollm2": ("LlamaForCausalLM", {"tie_word_embeddings": True, "head_dim": None}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True, "head_dim": None}),
    "qwen2_window": (
        "Qwen2ForCausalLM",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
            "hidden_act": "gelu",
        },
    ),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            "sliding_window": 5,
            "query_pre_attn_scalar": 9,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {
            "sliding_window": 5,
            "query_pre_attn_scalar": 9,
            "final_logit_softcapping": 4.0,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_hidden_layers": 4,
            "rope_parameters": {"full_attention": LINEAR, "sliding_attention": LOCAL},
        },
    ),
    "llama_bias": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "qwen3_bias": ("Qwen3ForCausalLM", {"attention_bias": True}),
}


def make(name: str, seed: int) -> None:
    """Writes the folder of one family."""
    architecture, fields = FAMILIES[name]
    kind = getattr(transformers, architecture)
    fields = {"attn_implementation": "eager", **SIZES, **fields}
    if fields["head_dim"] is None:
        # Even heads: 24 / 4.
        fields |= {"hidden_size": 24}
        del fields["head_dim"]
    model = kind(kind.config_class(**fields)).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        # Norms away from their start, and all large enough for caps to bend; with more,
        # float32 itself leaves 1e-4 of the logits open.
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.3 * noise + (parameter.data if parameter.ndim == 1 else 0)
    tokens = torch.randint(0, SIZES["vocab_size"], (2, LENGTH), generator=generator)
    with torch.no_grad():
        logits = model(tokens).logits
    model.save_pretrained(GOLDEN / name)
    # Generation is tested elsewhere.
    (GOLDEN / name / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(
        GOLDEN / name / "logits.npz",
        tokens=tokens.numpy().astype(np.int32),
        logits=logits.numpy(),
    )
    print(f"{name}: logits of deviation {logits.std():.2f}", file=sys.stderr)


if __name__ == "__main__":
    for seed, name in enumerate(FAMILIES):
        make(name, seed)
