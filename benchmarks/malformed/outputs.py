"""Places that cannot be written, or that hold something already."""

import pathlib
import shutil
from collections.abc import Iterator

from benchmarks.malformed.case import RESUME, Case, line


def _write_notes(folder: pathlib.Path) -> None:
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine")


# command, flag of what it writes, a name of it, whether it is a folder.
OUTPUTS: tuple[tuple[str, str, str, bool], ...] = (
    ("prepare", "out", "new", True),
    ("prepare", "tables_out", "new", True),
    ("sample", "out", "new.jsonl", False),
    ("predict", "out", "new.jsonl", False),
    ("steer", "out", "new.jsonl", False),
    ("steer", "export", "new", True),
    ("train", "workdir", "new", True),
    ("sweep", "workdir", "new", True),
    ("probe", "out", "new", True),
    ("compile", "out", "new.json", False),
    ("compile", "text", "new.txt", False),
)


def outputs(sound: pathlib.Path) -> Iterator[Case]:
    """Yields places that cannot be written, or that hold something already."""
    for command, flag, name, is_folder in OUTPUTS:

        def given(place, command=command, flag=flag):
            return line(command, **{flag: place})

        where = f"{command} --{flag}"
        yield Case(f"{where}: below a file", given(f"mine.py/{name}"))
        yield Case(f"{where}: far below a file", given(f"mine.py/a/b/{name}"))
        yield Case(f"{where}: a name that is too long", given(f"new/{'n' * 300}{name}"))
        yield Case(f"{where}: below /proc", given(f"/proc/nosuch/{name}"))
        yield Case(
            f"{where}: in a folder of another user",
            given(f"locked/{name}"),
            lambda folder: (folder / "locked").mkdir(mode=0o755),
            as_nobody=True,
        )
        if is_folder:
            yield Case(f"{where}: a file", given("ratings.jsonl"))
            # Tables may be saved beside others, and a probe be written again.
            if flag not in ("tables_out", "export") and command != "probe":
                yield Case(
                    f"{where}: a folder with notes", given("notes"), _write_notes
                )
        else:
            yield Case(
                f"{where}: a directory",
                given(name),
                lambda folder, name=name: (folder / name).mkdir(),
            )
        if name.endswith(".jsonl"):
            yield Case(f"{where}: exists", given("ratings.jsonl"))
            yield Case(f"{where}: another extension", given("new.txt"))
            yield Case(f"{where}: no extension", given("new"))
    compare = ("evaluate", "--compare", "runs/reward_model")
    for place in ("mine.py/a.png", "runs", "/proc/nosuch/a.png"):
        yield Case(f"evaluate --compare --out={place}", (*compare, f"--out={place}"))
    occupied = ("data/people", "data/choices", "runs/reward_model", "language", "runs")
    for place in occupied:
        yield Case(f"prepare --out={place}", line("prepare", out=place))
        yield Case(
            f"steer --export={place}",
            line("steer", export=place, prompts=None, out=None),
        )
    for place in ("runs/reward_model", "language", "runs", ".", "data"):
        yield Case(
            f"prepare --overwrite --out={place}",
            (*line("prepare", out=place), "--overwrite"),
        )
    yield Case(
        "prepare --overwrite of a dataset with notes",
        (*line("prepare", out="data/people"), "--overwrite"),
        lambda folder: (folder / "data" / "people" / "notes.txt").write_text("mine"),
    )
    yield Case(
        "prepare --overwrite of a dataset with a run",
        (*line("prepare", out="data/people"), "--overwrite"),
        lambda folder: shutil.copytree(
            folder / "runs" / "reward_model", folder / "data" / "people" / "run"
        ),
    )
    for command, workdir in (
        ("evaluate", "runs/reward_model"),
        ("evaluate", "runs/policy"),
        ("train", "runs/reward_model"),
    ):
        flags = RESUME if command == "train" else {"workdir": workdir}
        extra = ("--config.train.keep_last=3",) if command == "train" else ()
        yield Case(
            f"{command} of {workdir}, whose owner is another",
            (*line(command, flags), *extra),
            lambda folder: None,
            as_nobody=True,
        )
