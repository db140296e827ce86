"""Training time of the synthetic task, compilation apart.

`python benchmarks/training_time.py` times 1000 steps of 64 users, as the paper's code
takes 203 s for on 2 idle CPU cores (deterministic NP-BTL; 155 s for BTL).
"""

import functools
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax

from experiments.synthetic import two_types
from fsa.models.reward import RewardModel
from fsa.recipes.config import build_task, model_arguments, resolve
from fsa.training import reward_loss
from fsa.training.runner import MeshRunner
from fsa.training.step import init_state, make_optimizer

PAPER_SECONDS = {"np-btl": 203.0, "np-btl-deterministic": 203.0, "btl": 155.0}


def measure(name: str) -> tuple[float, float]:
    """(seconds of the first call, seconds to train) the shipped config of one model."""
    config = resolve(two_types.get_config(name))
    task = build_task(config)
    model = RewardModel(**model_arguments(config, task.num_items))
    steps, per_call = config["train"]["steps"], config["train"]["steps_per_call"]
    optimizer = make_optimizer(**config["optimizer"], steps=steps)
    objective = config["objective"]
    loss_fn = reward_loss.make_loss(
        model,
        task,
        objective=objective["name"],
        num_samples=objective["num_samples"],
        beta=objective["beta"],
    )
    key = jax.random.key(0)
    state = init_state(reward_loss.init_variables(model, task, key), optimizer)
    run = MeshRunner(loss_fn, optimizer, batch_size=task.batch_size)
    state, constants = run.place(state), run.place(task.constants)
    make_examples = functools.partial(reward_loss.make_examples, task)
    calls = [
        run.batch(make_examples, first, per_call) for first in range(0, steps, per_call)
    ]
    begin = time.perf_counter()
    # The first call compiles, and is not counted as training.
    state = jax.block_until_ready(run(state, constants, calls[0], key)[0])
    compiled = time.perf_counter()
    for rows in calls:
        state, _ = run(state, constants, rows, key)
    jax.block_until_ready(state)
    return compiled - begin, time.perf_counter() - compiled


def main():
    """Prints a table."""
    print(f"{'model':24}{'compile s':>10}{'train s':>10}{'paper s':>10}{'ratio':>8}")
    for name, paper in PAPER_SECONDS.items():
        compile_seconds, seconds = measure(name)
        print(
            f"{name:24}{compile_seconds:10.1f}{seconds:10.1f}{paper:10.0f}"
            f"{paper / seconds:8.0f}"
        )


if __name__ == "__main__":
    main()
