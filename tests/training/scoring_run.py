"""Scores responses on a mesh of several processes, for a minute if nothing happens.

Command line: as of launch/train.py, but for --config.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from fsa import sharding
from fsa.data.responses import TokenTable
from fsa.models import hf_config
from fsa.models.transformer import SHARDING, Transformer
from fsa.training.precompute import score_responses
from launch import cli

flags.DEFINE_string("workdir", None, "Unused.", required=True)
join_processes = cli.process_flags()


def main(argv):
    del argv
    cli.end_on_sigterm()
    join_processes()
    mesh = sharding.make_mesh(fsdp=2)
    described = hf_config.llama(
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
    model = Transformer(**hf_config.arguments(described))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    placement = sharding.shardings(variables, mesh, SHARDING)
    variables = sharding.place(variables, placement)
    rng = np.random.default_rng(0)
    table = TokenTable.of([(rng.integers(3, 80, 8).tolist(), 4)] * 50_000)
    score_responses(model, variables, table, buckets=(8,), tokens_at_once=8, mesh=mesh)


if __name__ == "__main__":
    cli.run(main)
