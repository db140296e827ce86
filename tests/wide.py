"""A policy whose widths are all multiples of 16, so that every mesh divides them."""

import jax
import jax.numpy as jnp

from fsa.language.transformer import Transformer
from fsa.models.policy import Policy
from fsa.models.reward import RewardModel

MODULATIONS = (
    ("attention/query", "low_rank(2)"),
    ("attention/out", "low_rank(2)"),
    ("mlp/up", "scale + low_rank(2)"),
    ("mlp/down", "scale + shift + low_rank(2)"),
    ("mlp/gate", "shift"),
)


def policy_shapes():
    """The shapes of the policy's variables."""
    model = Transformer(
        num_layers=2,
        vocab_size=64,
        width=32,
        num_heads=16,
        num_kv_heads=16,
        head_dim=16,
        mlp_width=48,
        tied=False,
        biases=("mlp/down", "mlp/gate", "attention/query"),
    )
    modulated = Policy(
        model,
        RewardModel(hidden=16, latent_dim=8, pooling="attention", num_items=32),
        MODULATIONS,
        trunk=(16,),
        train_base=True,
    )

    def init():
        base = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        return modulated.init(jax.random.key(0), base, num_features=16)

    return jax.eval_shape(init)
