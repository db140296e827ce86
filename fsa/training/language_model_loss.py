"""The loss of a language model, for those that are pretrained here.

Shapes: B sequences, T tokens.
"""

import jax
import jax.numpy as jnp

from fsa.language.transformer import Transformer
from fsa.parallel.sharding import vmap_examples
from fsa.training.step import LossFn


def make_loss(model: Transformer, pad: int) -> LossFn:
    """Negative log-likelihood of whole sequences, in nats.

    Args:
      model: what is trained.
      pad: the token that fills up sequences, on the right.

    Returns:
      A loss over batches `(tables, tokens [B, T])`, whatever the tables: the mean over
      sequences, so that it is the same however they are spread over devices. The metric
      `nll` is per token, `tokens` their number in a sequence.
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
    """Random parameters."""
    return jax.jit(model.init)(key, jnp.zeros((1, 1), jnp.int32))
