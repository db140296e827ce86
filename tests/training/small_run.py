"""A run of `fsa.training.loop.train` that compiles in a second, for several processes.

Fits a linear map to noisy rows that are keyed by step and row, as real runs are.
Command line: as of launch/train.py, but for --config.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from fsa import distributed, episodes
from fsa.training import workdir
from fsa.training.checkpoint import Checkpoints
from fsa.training.loop import train
from fsa.training.metrics import MetricsWriter
from fsa.training.parallel import MeshRunner
from fsa.training.step import init_state
from launch import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Where the run lives.", required=True)
join_processes = cli.process_flags()
flags.DEFINE_integer("steps", 200, "")
flags.DEFINE_integer("steps_per_call", 5, "")
flags.DEFINE_integer("validate_every", 20, "")
flags.DEFINE_integer("width", 64, "Of the map; its square is what a save writes.")

BATCH_SIZE = 8


class Rows(NamedTuple):
    step: np.ndarray
    row: np.ndarray


def make_rows(step, positions):
    return Rows(np.full_like(positions, step), positions)


def loss_fn(variables, batch, key):
    _, rows = batch

    def one(row):
        x, noise = jax.random.normal(
            episodes.row_key(key, row.step, row.row), (2, FLAGS.width)
        )
        wanted = jnp.roll(x, 1) + 0.1 * noise
        return jnp.mean((variables["params"]["w"] @ x - wanted) ** 2)

    return jnp.mean(jax.vmap(one)(rows)), {}


def main(argv):
    del argv
    cli.end_on_sigterm()
    join_processes()
    run_dir = workdir.locate(FLAGS.workdir)
    distributed.on_first(lambda: run_dir.mkdir(parents=True, exist_ok=True))
    optimizer = optax.adam(1e-2)
    params = {"w": jnp.zeros((FLAGS.width, FLAGS.width))}
    norm = jax.jit(lambda params: jnp.sum(params["w"] ** 2))
    checkpoints = Checkpoints(run_dir / "checkpoints")
    train(
        init_state({"params": params}, optimizer),
        runner=MeshRunner(loss_fn, optimizer, batch_size=BATCH_SIZE, average_decay=0.9),
        tables=(),
        make_rows=make_rows,
        key=jax.random.key(0),
        validate=lambda state: {"score": float(norm(state.params))},
        checkpoints=checkpoints,
        writer=lambda step: MetricsWriter(run_dir, resume_step=step),
        meta={},
        steps=FLAGS.steps,
        steps_per_call=FLAGS.steps_per_call,
        validate_every=FLAGS.validate_every,
        progress=False,
    )
    checkpoints.close()


if __name__ == "__main__":
    cli.run(main)
