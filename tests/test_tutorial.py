"""The tutorial notebook runs from top to bottom."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"
# What the notebook repeats, and how often here: enough for every line to run. All that
# it shows is drawn or printed anew, and none of its checks needs a trained model.
FEWER = {
    "config.train.steps = 1000": "config.train.update(steps=250, batch_size=16)",
    "for _ in range(500):": "for _ in range(20):",
    "size=400)": "size=100)",
    "2 * np.pi, 200)]": "2 * np.pi, 20)]",
}


def shorten(notebook):
    """Has the notebook repeat less; each of `FEWER` is there once."""
    for long, short in FEWER.items():
        (cell,) = [cell for cell in notebook.cells if long in cell.source]
        assert cell.cell_type == "code" and cell.source.count(long) == 1
        cell.source = cell.source.replace(long, short)


@pytest.mark.slow
def test_every_cell_runs(tmp_path, compiled, monkeypatch):
    """A cell that raises, also by the notebook's own checks, raises here."""
    # The kernel is a process of its own, which these reach.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    shorten(notebook)
    was = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    # The stored outputs are of this code: the same kinds, but for what goes to stderr.
    assert [shown(cell.outputs) for cell in cells] == list(map(shown, was))


def shown(outputs):
    """The kinds of what a cell showed."""
    return {
        output.output_type if output.output_type != "stream" else output.name
        for output in outputs
    } - {"stderr"}
