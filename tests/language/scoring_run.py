"""Scores responses on a mesh of several processes, for a minute if nothing happens.

Its flags are those of `fsa train`, except for --config.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from fsa.commands import command_line
from fsa.language.huggingface import architecture
from fsa.language.scoring import score_responses
from fsa.language.token_table import TokenTable
from fsa.language.transformer import SHARDING_RULES, Transformer
from fsa.parallel import sharding

flags.DEFINE_string("workdir", None, "Unused.", required=True)
join_processes = command_line.process_flags()


def main(argv):
    del argv
    with command_line.resumable():
        join_processes()
        run()


def run():
    mesh = sharding.make_mesh(fsdp=2)
    described = architecture.llama(
        width=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        mlp_width=20,
        vocab_size=80,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = Transformer(**architecture.arguments(described))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    placement = sharding.shardings(variables, mesh, SHARDING_RULES)
    variables = sharding.place(variables, placement)
    rng = np.random.default_rng(0)
    table = TokenTable.of([(rng.integers(3, 80, 8).tolist(), 4)] * 50_000)
    score_responses(model, variables, table, buckets=(8,), tokens_at_once=8, mesh=mesh)


if __name__ == "__main__":
    command_line.run(main)
