"""The tutorial notebook runs from top to bottom."""

import pathlib

import nbformat
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"


def test_every_cell_runs(tmp_path):
    """A cell that raises, also by the notebook's own checks, raises here."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
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
