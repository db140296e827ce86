"""A run of `fsa.training.loop.train` that compiles in a second, for several processes.

It fits a linear map to noisy examples, whose random numbers depend on step and position
as in real runs. Its flags are those of `fsa train`, without --config.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from fsa import episodes
from fsa.commands import command_line
from fsa.parallel import processes
from fsa.training import run_directory
from fsa.training.checkpoint import Checkpoints
from fsa.training.loop import train
from fsa.training.monitor.metrics import MetricsWriter
from fsa.training.runner import MeshRunner
from fsa.training.step import init_state

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Run directory.", required=True)
join_processes = command_line.process_flags()
flags.DEFINE_integer("steps", 200, "")
flags.DEFINE_integer("steps_per_call", 5, "")
flags.DEFINE_integer("validate_every", 20, "")
flags.DEFINE_integer("width", 64, "Width of the map; a save writes its square.")

BATCH_SIZE = 8


class Examples(NamedTuple):
    step: np.ndarray
    position: np.ndarray


def make_examples(step, positions):
    return Examples(np.full_like(positions, step), positions)


def loss_fn(variables, batch, key):
    _, examples = batch

    def one(example):
        x, noise = jax.random.normal(
            episodes.example_key(key, example.step, example.position), (2, FLAGS.width)
        )
        wanted = jnp.roll(x, 1) + 0.1 * noise
        return jnp.mean((variables["params"]["w"] @ x - wanted) ** 2)

    return jnp.mean(jax.vmap(one)(examples)), {}


def main(argv):
    del argv
    with command_line.resumable():
        join_processes()
        run()


def run():
    run_dir = run_directory.locate(FLAGS.workdir)
    processes.on_first(lambda: run_dir.mkdir(parents=True, exist_ok=True))
    optimizer = optax.adam(1e-2)
    params = {"w": jnp.zeros((FLAGS.width, FLAGS.width))}
    norm = jax.jit(lambda params: jnp.sum(params["w"] ** 2))
    checkpoints = Checkpoints(run_dir / "checkpoints")
    train(
        init_state({"params": params}, optimizer),
        runner=MeshRunner(loss_fn, optimizer, batch_size=BATCH_SIZE, average_decay=0.9),
        constants=(),
        make_examples=make_examples,
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
    command_line.run(main)
