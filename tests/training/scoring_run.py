"""Scores responses on a mesh of several processes, for a minute if nothing happens.

Command line: as of launch/train.py, but for --config.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from fsa import distributed, sharding
from fsa.data.responses import TokenTable
from fsa.models import hf_config
from fsa.models.transformer import SHARDING, Transformer
from fsa.training.precompute import score_responses
from launch import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Unused.", required=True)
flags.DEFINE_string("coordinator", None, "")
flags.DEFINE_integer("num_processes", None, "")
flags.DEFINE_integer("process_id", None, "")
flags.DEFINE_integer("heartbeat_seconds", 10, "")
flags.DEFINE_integer("connect_seconds", 60, "")


def main(argv):
    del argv
    cli.end_on_sigterm()
    distributed.initialize(
        FLAGS.coordinator,
        FLAGS.num_processes,
        FLAGS.process_id,
        heartbeat_seconds=FLAGS.heartbeat_seconds,
        connect_seconds=FLAGS.connect_seconds,
    )
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
