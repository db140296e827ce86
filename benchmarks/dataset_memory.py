"""Measures the peak memory of preparing, training and evaluating on many people.

    python benchmarks/dataset_memory.py --people=100000,1000000
    python benchmarks/dataset_memory.py --heavy [--before=CHECKOUT] [--limit_gb=8]

`--people` makes a table of ten choices of each of so many people between 20,000 items
of 16 features, in a mixed order. `fsa prepare`, `fsa train` (500 steps of 64 people,
one validation) and `fsa evaluate` run on it, each as a process of its own, whose peak
of resident memory is measured, with users on disk, and for up to `--in_memory` people
also with users in memory. First steps are there when metrics.jsonl has a line, counted
from the start of the process.

`--heavy` makes datasets of many users, who made 5 to 14 choices or 10 to 29 ratings,
and one heavy user in training, and starts a run on each in a process of its own: the
dataset is read, the run is built, and 125 steps of 64 users are made. A process that
takes more than the limit is stopped. With `--before`, the fsa of another checkout is
measured as well.

Each writes its part of `results/dataset_memory.md`. It runs on Linux only.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]

# (users, choices or ratings of the heavy one).
SIZES = ((10_000, 2_000), (100_000, 20_000))
STEPS = 25

# Of `--people`.
ITEMS, FEATURES = 20_000, 16
CONFIG = """
from fsa.recipes.presets import people

def get_config():
    config = people("np-btl")
    config.task.max_context = config.task.num_targets = 5
    config.eval.num_context, config.eval.num_targets = (0, 1, 3, 5), 5
    config.eval.episodes_per_user = config.eval.valid_episodes_per_user = 1
    config.eval.num_samples = 4
    config.train.steps = config.train.validate_every = 500
    config.train.steps_per_call = 25
    return config
"""


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


class Watched(NamedTuple):
    """What was seen of a process.

    Attributes:
      peak: of resident bytes.
      seconds: how long it ran.
      first: seconds until a file was there, if one was named.
      printed: its standard output; None if it was stopped at the limit.
    """

    peak: int
    seconds: float
    first: float | None
    printed: str | None


def watch(
    command: list[str],
    root: str,
    limit: float = float("inf"),
    file: pathlib.Path | None = None,
) -> Watched:
    """Runs a process with the fsa of a checkout."""
    environment = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    begin, peak, first = time.perf_counter(), 0, None
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, env=environment, cwd=root, stdout=printed)
        while process.poll() is None:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            if found := re.search(r"VmHWM:\s+(\d+) kB", status):
                peak = max(peak, 1024 * int(found[1]))
            if peak > limit:
                process.kill()
                process.wait()
                return Watched(peak, time.perf_counter() - begin, first, None)
            if file and first is None and file.exists() and file.stat().st_size:
                first = time.perf_counter() - begin
            time.sleep(0.02)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
        printed.seek(0)
        return Watched(peak, time.perf_counter() - begin, first, printed.read())


def make_tables(folder: pathlib.Path, people: int) -> None:
    """Writes ten choices of each person in a mixed order, and vectors of the items.

    People weigh four of the features, each in another way.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    features = rng.normal(size=(ITEMS, FEATURES)).astype(np.float32)
    taste = rng.normal(size=(people, 4)).astype(np.float32)
    np.save(folder / "vectors.npy", features)
    ids = "".join(f"i{item}\n" for item in range(ITEMS))
    (folder / "ids.csv").write_text(f"id\n{ids}")
    step = next(prime for prime in (7919, 104_729) if people % prime)
    with (folder / "choices.csv").open("w") as file:
        file.write("user,chosen,rejected,chosen_id,rejected_id\n")
        for rows in np.array_split(np.arange(10 * people), -(-people // 10_000)):
            who = rows * step % people
            first = rng.integers(0, ITEMS, len(who))
            second = (first + rng.integers(1, ITEMS, len(who))) % ITEMS
            gap = features[first, :4] - features[second, :4]
            right = (taste[who] * gap).sum(1) > 0
            chosen = np.where(right, first, second).tolist()
            rejected = np.where(right, second, first).tolist()
            file.writelines(
                f"p{p},text {c},text {r},i{c},i{r}\n"
                for p, c, r in zip(who.tolist(), chosen, rejected, strict=True)
            )


def of_people(people: int, ways: dict[str, int]) -> Iterator[str]:
    """Yields the lines of the table for so many people.

    Args:
      people: their number.
      ways: how users are held -> task.most_in_memory.
    """
    fsa = [sys.executable, "-m", "fsa"]
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        make_tables(folder, people)
        (folder / "config.py").write_text(CONFIG)
        data = folder / "data"
        tables = [f"--choices={folder / 'choices.csv'}", f"--out={data}"]
        tables += [f"--vectors={folder / 'vectors.npy'}"]
        tables += [f"--vector_ids={folder / 'ids.csv'}"]
        found = watch([*fsa, "prepare", *tables], str(ROOT))
        size = sum(file.stat().st_size for file in (data / "users").rglob("*.array*"))
        begin = f"| {10 * people:,} | {people:,} | {size / 1e6:,.0f}"
        yield f"{begin} | prepare | - {_cells(found)} | - | - |"
        for way, most in ways.items():
            run = folder / way.replace(" ", "-")
            fields = [f"--config={folder / 'config.py'}", f"--config.task.path={data}"]
            fields.append(f"--config.task.most_in_memory={most}")
            train = [*fsa, "train", *fields, f"--workdir={run}"]
            found = watch(train, str(ROOT), file=run / "metrics.jsonl")
            rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            rates = [row["choices_per_second"] for row in rows if "loss" in row]
            # The first ones are read while the next ones compile.
            rate = statistics.median(rates[len(rates) // 4 :])
            last = f"{found.first:.1f} | {rate:,.0f}"
            yield f"{begin} | train | {way} {_cells(found)} | {last} |"
            found = watch([*fsa, "evaluate", f"--workdir={run}"], str(ROOT))
            yield f"{begin} | evaluate | {way} {_cells(found)} | - | - |"


def _cells(found: Watched) -> str:
    return f"| {found.peak / 1e9:.2f} | {found.seconds:.0f}"


def write_part(title: str, lines: list[str]) -> None:
    """Writes a part of the report in place of the one with its title."""
    path = ROOT / "benchmarks" / "results" / "dataset_memory.md"
    parts = re.split(r"^(?=## )", path.read_text(), flags=re.M)
    head, others = parts[0], [p for p in parts[1:] if not p.startswith(f"## {title}\n")]
    new = "\n".join([f"## {title}", "", *lines, ""])
    path.write_text("\n".join(part.strip() + "\n" for part in (head, new, *others)))


def row_of(users: int, heavy: int, source: str, code: str, found: Watched) -> str:
    """Formats one line of the table of heavy users."""
    cells = [f"{users:,}", f"{heavy:,}", source, code]
    if found.printed is None:
        cells += [f"over {found.peak / 1e9:.1f} (stopped)", "-", "-", "-"]
    else:
        printed = json.loads(found.printed)
        cells += [
            f"{found.peak / 1e9:.2f}",
            f"{printed['on_device'] / 1e6:,.1f}",
            f"{printed['ready']:.1f}",
            f"{printed['steps_per_second']:.1f}",
        ]
    return f"| {' | '.join(cells)} |"


def of_heavy(before: str | None, limit: float) -> Iterator[str]:
    """Yields the lines of the table of heavy users."""
    roots = {"before": before} if before else {}
    roots["now"] = str(ROOT)
    script = [sys.executable, __file__]
    for users, heavy in SIZES:
        for source in ("choices", "ratings"):
            with tempfile.TemporaryDirectory() as made:
                folder = f"{made}/{source}"
                watch([*script, f"--make={users},{heavy},{folder}"], str(ROOT))
                for code, root in roots.items():
                    found = watch([*script, f"--folder={folder}"], root, limit)
                    yield row_of(users, heavy, source, code, found)


def main():
    """Writes a part of the report, or prints one measurement as a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--people", help="numbers of people, separated by commas")
    parser.add_argument("--in_memory", type=int, default=0, help="most people to hold")
    parser.add_argument("--heavy", action="store_true", help="one user chose often")
    parser.add_argument("--before", help="another checkout, to be measured as well")
    parser.add_argument("--limit_gb", type=float, default=8)
    parser.add_argument("--folder", help="measure this dataset, in this process")
    parser.add_argument("--make", help="write a dataset: USERS,HEAVY,FOLDER")
    args = parser.parse_args()
    if args.make:
        users, heavy, folder = args.make.split(",")
        path = pathlib.Path(folder)
        make_folder(path, int(users), int(heavy), path.name == "ratings")
    elif args.folder:
        print(json.dumps(measure(args.folder)))
    elif args.heavy:
        head = "users | of the heavy one | train_on | code | peak of the process, GB"
        head += " | arrays on the device, MB | seconds to build | steps/s"
        lines = [f"| {head} |", "|" + "---|" * 8]
        for line in of_heavy(args.before, args.limit_gb * 1e9):
            print(line, flush=True)
            lines.append(line)
        write_part("One person who chose very often", lines)
    elif args.people:
        head = "choices | people | users on disk, MB | command | users are held"
        head += " | peak of the process, GB | seconds | to the first steps | choices/s"
        lines = [f"| {head} |", "|" + "---|" * 9]
        for people in map(int, args.people.split(",")):
            ways = {"on disk": 0}
            if people <= args.in_memory:
                ways["in memory"] = 2**50
            for line in of_people(people, ways):
                print(line, flush=True)
                lines.append(line)
        write_part("Many people", lines)


if __name__ == "__main__":
    main()
