"""Language models with random weights, for the benchmarks of policies."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from experiments.policy import qwen2_1_5b
from fsa.language import attention_kernels
from fsa.language.huggingface import architecture
from fsa.language.transformer import Transformer

# The modulated maps: the outputs of attention and MLP.
OUTPUTS = ("attention/out", "mlp/down")
LATENT_DIM = 16

# Fields of the config.json of these models.
MODELS = {
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "vocab_size": 49152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e5,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "vocab_size": 151936,
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "qwen2.5-1.5b": dict(qwen2_1_5b.get_config().language_model.shape),
}


@dataclasses.dataclass(frozen=True)
class RandomLanguageModel:
    """Sizes of a language model; the sizes of a benchmark inherit them.

    `model` is one of `MODELS`; without one it is a Llama of `width`, `layers` and
    `vocab`. `remat` is a policy of `jax.checkpoint_policies`, and `attention` one of
    `fsa.language.attention_kernels`.
    """

    width: int = 512
    layers: int = 4
    vocab: int = 4096
    dtype: str = "float32"
    model: str = ""
    remat: str = ""
    attention: str = attention_kernels.XLA

    @property
    def described(self) -> dict[str, Any]:
        """The fields of its `config.json`."""
        if self.model:
            return MODELS[self.model]
        return architecture.llama(
            vocab_size=self.vocab,
            width=self.width,
            num_layers=self.layers,
            num_heads=8,
            num_kv_heads=4,
            head_dim=self.width // 8,
            mlp_width=self.width * 8 // 3,
        )

    def make(self) -> tuple[Transformer, Any]:
        """Makes (model, variables)."""
        model = Transformer(
            **architecture.arguments(self.described),
            remat=self.remat or None,
            attention=self.attention,
            dtype=self.dtype,
            param_dtype=self.dtype,
        )
        init, tokens = jax.jit(model.init), jnp.zeros((1, 1), jnp.int32)
        return model, init(jax.random.key(0), tokens)
