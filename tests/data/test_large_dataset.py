"""Peak memory does not grow with the number of people."""

import json
import subprocess
import sys

import numpy as np
import pytest

ITEMS, CHOICES = 50, 8

# Prepares a table, or makes some steps on a dataset; prints the peak in bytes.
_PREPARE = """
from fsa.data import preparation
from fsa.data.tables import Reader

source = preparation.read_tables([f"{folder}/choices.csv"], [], Reader())
vectors = dict(vectors=f"{folder}/vectors.npy", vector_ids=f"{folder}/ids.csv")
preparation.prepare(f"{folder}/data", [source], **vectors)
"""
_TRAIN = """
import jax
from fsa.recipes import config, presets, reward_model_run, run
from fsa.training.step import init_state

wanted = presets.people("np-btl")
wanted.task.path, wanted.task.most_in_memory = f"{folder}/data", 0
wanted.task.max_context, wanted.eval.num_context = 3, (0, 3)
settings = config.resolve(wanted, 1)
built = reward_model_run.build(settings, *jax.random.split(jax.random.key(0)))
optimizer = run.build_optimizer(settings)
runner = run.build_runner(settings, built.loss_fn, (), optimizer)
state = runner.place(init_state(built.variables, optimizer))
constants = runner.place(built.constants)
for step in range(3):
    batch = runner.batch(built.make_examples, step, 1)
    state, _ = runner(state, constants, batch, runner.place(jax.random.key(1)))
jax.block_until_ready(state)
"""


def write_tables(folder, people):
    rng = np.random.default_rng(0)
    np.save(folder / "vectors.npy", rng.normal(size=(ITEMS, 3)))
    ids = "".join(f"i{item}\n" for item in range(ITEMS))
    (folder / "ids.csv").write_text(f"id\n{ids}")
    with (folder / "choices.csv").open("w") as file:
        file.write("user,chosen,rejected,chosen_id,rejected_id\n")
        for place in range(CHOICES):
            for person in range(people):
                one, other = place, ITEMS - 1 - (person + place) % 30
                file.write(f"p{person},t{one},t{other},i{one},i{other}\n")


def peak(folder, program):
    """Runs a program in a process of its own; returns its peak in GB."""
    end = "import json, resource\n"
    end += "print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))"
    code = f"folder = {str(folder)!r}\n{program}\n{end}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1]) / 1e6


@pytest.mark.slow
def test_peaks_are_flat(tmp_path):
    """Eight times as many people, whose lists alone would take 50 MB."""
    found = []
    for people in (10_000, 80_000):
        folder = tmp_path / str(people)
        folder.mkdir()
        write_tables(folder, people)
        found.append([peak(folder, program) for program in (_PREPARE, _TRAIN)])
    (small_prepare, small_train), (large_prepare, large_train) = found
    assert large_prepare < 1.2 * small_prepare < 2
    assert large_train < 1.2 * small_train < 2
