"""The notebook runs from the first cell to the last and fits its return."""

import ast
import pathlib

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "experiments" / "notebooks" / "compose_losses.ipynb"


def load():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_outputs_are_cleared():
    cells = [cell for cell in load().cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_it_runs_and_fits(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")  # it trains for long
    notebook = load()
    client = nbclient.NotebookClient(
        notebook, timeout=180, resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    results = [
        output["data"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type in ("execute_result", "display_data")
    ]
    assert sum("image/png" in data for data in results) == 4
    (distances,) = [
        ast.literal_eval(data["text/plain"])
        for data in results
        if data["text/plain"].startswith("{")
    ]
    assert distances["midpoint, 8 steps"] < 0.1
    assert distances["one step of the map"] < 0.15
    assert distances["the mean alone"] > 0.5
