"""A Llama with random weights, which the benchmarks of policies run."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fsa.models import hf_config
from fsa.models.transformer import Transformer

# What is modulated: what attention and MLP put out.
OUTPUTS = ("attention/out", "mlp/down")
LATENT_DIM = 16


@dataclasses.dataclass(frozen=True)
class Llama:
    """Its sizes, which those of a benchmark inherit."""

    width: int = 512
    layers: int = 4
    vocab: int = 4096
    dtype: str = "float32"

    @property
    def described(self) -> dict[str, Any]:
        """What `config.json` says of it."""
        return hf_config.llama(
            vocab_size=self.vocab,
            width=self.width,
            num_layers=self.layers,
            num_heads=8,
            num_kv_heads=4,
            head_dim=self.width // 8,
            mlp_width=self.width * 8 // 3,
        )

    def make(self) -> tuple[Transformer, Any]:
        """(model, variables)."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.dtype}
        model = Transformer(**hf_config.arguments(self.described), **dtypes)
        init, tokens = jax.jit(model.init), jnp.zeros((1, 1), jnp.int32)
        return model, init(jax.random.key(0), tokens)
