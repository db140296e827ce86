"""Training time of the synthetic task, without compilation.

`python benchmarks/training_time.py` times 1000 steps of 64 users. On 2 idle CPU cores
the paper's code takes 203 s for them (deterministic NP-BTL; 155 s for BTL).
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax

from experiments.synthetic import two_types
from fsa.recipes import reward_model_run
from fsa.recipes.config import resolve
from fsa.recipes.run import build_optimizer, build_runner
from fsa.training.step import init_state

PAPER_SECONDS = {"np-btl": 203.0, "np-btl-deterministic": 203.0, "btl": 155.0}


def measure(name: str) -> tuple[float, float]:
    """Returns seconds of the first call and of training, for a shipped config."""
    config = resolve(two_types.get_config(name))
    steps, per_call = config["train"]["steps"], config["train"]["steps_per_call"]
    key, optimizer = jax.random.key(0), build_optimizer(config)
    run = reward_model_run.build(config, key, key)
    runner = build_runner(config, run.loss_fn, run.sharding_rules, optimizer)
    state = runner.place(init_state(run.variables, optimizer))
    constants = runner.place(run.constants)
    calls = [
        runner.batch(run.make_examples, first, per_call)
        for first in range(0, steps, per_call)
    ]
    begin = time.perf_counter()
    # The first call also compiles, and does not count as training.
    state = jax.block_until_ready(runner(state, constants, calls[0], key)[0])
    compiled = time.perf_counter()
    for examples in calls:
        state, _ = runner(state, constants, examples, key)
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
