"""The command that compares all methods, on a reduced part of its work."""

import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DATA = REPOSITORY.parent / "shared" / "data"


def run(workdir, *arguments):
    command = [sys.executable, "-m", "experiments.benchmark", f"--data={DATA}"]
    return subprocess.run(
        [*command, f"--workdir={workdir}", "--quick", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="needs the public data")
def test_the_quick_benchmark(tmp_path):
    """Two datasets, one seed, ten minutes on two cores; then nothing is left."""
    result = run(tmp_path)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "table.md").read_text()
    for method in ("bayes", "lore", "gpo", "popularity", "best possible"):
        assert f"| {method} |" in table
    cells = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/**/*.json")
    }
    lost = next(iter(cells))
    lost.unlink()
    assert run(tmp_path).returncode == 0
    again = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("cells/**/*.json")
    }
    assert again.pop(lost) > cells.pop(lost)
    assert again == cells


@pytest.mark.slow
def test_a_method_that_there_is_not_is_refused_at_once(tmp_path):
    result = run(tmp_path, "--methods=lorre")
    assert result.returncode == 2
    assert "lorre" in result.stderr
