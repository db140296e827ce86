"""Measures the peak memory of training on many people, one of whom chose very often.

    python benchmarks/dataset_memory.py [--before=CHECKOUT] [--limit_gb=8]

Makes datasets of many users, who made 5 to 14 choices or 10 to 29 ratings, and one
heavy user in training, and starts a run on each in a process of its own: the dataset is
read, the run is built, and 125 steps of 64 users are made. The peak is that of the
process. A process that takes more than the limit is stopped. With `--before`, the fsa
of another checkout is measured as well. Writes `results/dataset_memory.md`. It runs on
Linux only.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]

# (users, choices or ratings of the heavy one).
SIZES = ((10_000, 2_000), (100_000, 20_000))
STEPS = 25


def make_folder(folder: pathlib.Path, users: int, heavy: int, ratings: bool) -> None:
    """Writes a dataset of `heavy` items; a tenth of the users is for validation."""
    import numpy as np

    from fsa.data import dataset
    from fsa.data.dataset import Dataset
    from fsa.data.users import UserTable

    rng = np.random.default_rng(0)

    def table(count: int, most: int) -> UserTable:
        # So that all are trained on: a choice is made of two ratings.
        lengths = rng.integers(10, 30, count) if ratings else rng.integers(5, 15, count)
        lengths[0] = most
        first = [rng.permutation(heavy)[:n] for n in lengths]
        second = [(items + 1) % heavy for items in first]
        values = [rng.integers(-1, 2, n) for n in lengths]
        nothing = [[]] * count
        return UserTable.of(
            [f"user {i}" for i in range(count)],
            [0] * count,
            chosen=nothing if ratings else first,
            rejected=nothing if ratings else second,
            items=first if ratings else nothing,
            values=values if ratings else nothing,
        )

    names = tuple(f"item {i}" for i in range(heavy))
    held_out = users // 10
    data = Dataset(
        features=rng.normal(size=(heavy, 16)).astype(np.float32),
        item_ids=names,
        texts=names,
        prompts=("",),
        item_prompt=np.zeros(heavy, np.int32),
        groups=("everybody",),
        users={
            "train": table(users - 2 * held_out, heavy),
            "valid": table(held_out, 100),
            "test": table(held_out, 100),
        },
        embedding=dataset.Embedding("random"),
    )
    dataset.write(folder, data)


def measure(folder: str) -> dict[str, float]:
    """Starts a run on a dataset; returns bytes and the median seconds of a step."""
    import jax
    import numpy as np

    from fsa.recipes import config, presets, reward_model_run, run
    from fsa.training.step import init_state

    source = pathlib.Path(folder).name
    wanted = presets.people("np-btl")
    wanted.task.path, wanted.task.train_on = folder, source
    wanted.train.steps_per_call = STEPS
    settings = config.resolve(wanted, 1)
    begin = time.perf_counter()
    built = reward_model_run.build(settings, *jax.random.split(jax.random.key(0)))
    optimizer = run.build_optimizer(settings)
    runner = run.build_runner(settings, built.loss_fn, (), optimizer)
    state, constants, key = (
        runner.place(tree)
        for tree in (
            init_state(built.variables, optimizer),
            built.constants,
            jax.random.key(1),
        )
    )
    jax.block_until_ready(constants)
    ready = time.perf_counter() - begin
    seconds = []
    for call in range(5):
        examples = runner.batch(built.make_examples, call * STEPS, STEPS)
        begin = time.perf_counter()
        state, _ = runner(state, constants, examples, key)
        jax.block_until_ready(state)
        seconds.append((time.perf_counter() - begin) / STEPS)
    on_device = sum(x.nbytes for x in jax.tree.leaves(constants))
    return {
        "on_device": on_device,
        "ready": ready,
        "steps_per_second": float(1 / np.median(seconds[1:])),
    }


def peak_of(command: list[str], root: str, limit: float) -> tuple[float, dict | None]:
    """Runs a process; returns its peak of resident bytes, and what it printed.

    Nothing is returned in place of what it printed if it was stopped at the limit.
    """
    environment = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True
    )
    peak = 0
    while process.poll() is None:
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            peak = max(peak, 1024 * int(found[1]))
        if peak > limit:
            process.kill()
            process.wait()
            return peak, None
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return peak, json.loads(process.stdout.read())


def row_of(users: int, heavy: int, source: str, code: str, found: tuple) -> str:
    """Formats one line of the table."""
    peak, printed = found
    cells = [f"{users:,}", f"{heavy:,}", source, code]
    if printed is None:
        cells += [f"over {peak / 1e9:.1f} (stopped)", "-", "-", "-"]
    else:
        cells += [
            f"{peak / 1e9:.2f}",
            f"{printed['on_device'] / 1e6:,.1f}",
            f"{printed['ready']:.1f}",
            f"{printed['steps_per_second']:.1f}",
        ]
    return f"| {' | '.join(cells)} |"


def main():
    """Writes the report, or prints one measurement as a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", help="another checkout, to be measured as well")
    parser.add_argument("--limit_gb", type=float, default=8)
    parser.add_argument("--folder", help="measure this dataset, in this process")
    parser.add_argument("--make", help="write a dataset: USERS,HEAVY,FOLDER")
    args = parser.parse_args()
    if args.make:
        users, heavy, folder = args.make.split(",")
        path = pathlib.Path(folder)
        make_folder(path, int(users), int(heavy), path.name == "ratings")
        print("{}")
        return
    if args.folder:
        print(json.dumps(measure(args.folder)))
        return
    roots = {"before": args.before} if args.before else {}
    roots["now"] = str(ROOT)
    lines = [__doc__.split("\n")[0], ""]
    head = "users | of the heavy one | train_on | code | peak of the process, GB"
    head += " | arrays on the device, MB | seconds to build | steps/s"
    lines += [f"| {head} |", "|" + "---|" * 8]
    script = [sys.executable, __file__]
    for users, heavy in SIZES:
        for source in ("choices", "ratings"):
            with tempfile.TemporaryDirectory() as made:
                folder = f"{made}/{source}"
                make = [*script, f"--make={users},{heavy},{folder}"]
                peak_of(make, str(ROOT), float("inf"))
                for code, root in roots.items():
                    command = [*script, f"--folder={folder}"]
                    found = peak_of(command, root, args.limit_gb * 1e9)
                    lines.append(row_of(users, heavy, source, code, found))
                    print(lines[-1], flush=True)
    report = ROOT / "benchmarks" / "results" / "dataset_memory.md"
    report.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
