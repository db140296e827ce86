"""The loss of a language model that is pretrained.

Shapes: B sequences, T tokens.
"""

import jax
import jax.numpy as jnp

from fsa.language.transformer import Transformer
from fsa.parallel.sharding import vmap_examples
from fsa.training.step import LossFn


def make_loss(model: Transformer, pad: int) -> LossFn:
    """Makes the negative log-likelihood of sequences, in nats.

    Args:
      model: the language model to train.
      pad: the padding token, which follows shorter sequences.

    Returns:
      A loss of batches `(constants, tokens [B, T])`, which ignores the constants. It is
      the mean over sequences, so it does not depend on how they are split over devices.
      The metric `nll` is per token; `tokens` is their mean number in a sequence.
    """

    def loss_fn(variables, batch, key):
        del key
        _, tokens = batch
        mask = tokens != pad

        def one(tokens, mask):
            log_probs = model.apply(
                variables, tokens[None], mask=mask[None], method=model.log_probs
            )
            return log_probs.sum()

        loss = -jnp.mean(vmap_examples(one)(tokens, mask))
        nll = loss / jnp.mean(mask[:, 1:].sum(axis=-1))
        return loss, {"nll": nll, "tokens": jnp.mean(mask.sum(axis=-1))}

    return loss_fn


def init_variables(model: Transformer, key: jax.Array):
    """Returns random initial variables."""
    return jax.jit(model.init)(key, jnp.zeros((1, 1), jnp.int32))
