"""What one of several processes does alone, or fails to do."""

import pathlib

import pytest

from benchmarks.survive import Program

FIRST = str(pathlib.Path(__file__).with_name("first_run.py"))


def run(folder, *flags):
    """The exit codes of two processes, and what each wrote."""
    codes = Program([FIRST, *flags], 0, 0).run(folder / "run")
    logs = [pathlib.Path(f"{folder}/run-{i}.log").read_text() for i in range(2)]
    return codes, logs


@pytest.mark.slow
def test_the_others_wait_longer_than_a_collective_would(tmp_path):
    """gloo ends a process that waits half a minute in a collective of devices."""
    codes, logs = run(tmp_path, "--seconds=45")
    assert codes == [0, 0], logs
    assert all("found 42" in log for log in logs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "codes", "told"),
    [
        ("refuses", [2, 2], "a.csv, row 3"),
        ("has a bug", [1, 1], "KeyError: 'a bug'"),
        ("the second fails", [2, 2], "no room on the second"),
        ("fails ahead", [2, 2], "no room on the first"),
        ("one is late", [0, 0], "found 42"),
    ],
)
def test_all_processes_end_alike(tmp_path, way, codes, told):
    """None of them waits for one that has failed."""
    found, logs = run(tmp_path, f"--way={way}")
    assert found == codes, logs
    assert all(told in log for log in logs)
