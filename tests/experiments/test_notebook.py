"""The notebooks run from the first cell to the last, and show what they say."""

import ast
import pathlib

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))


def load(name):
    (path,) = [path for path in NOTEBOOKS if path.stem == name]
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def results_of(name):
    """The notebook, executed, and what its cells displayed."""
    notebook = load(name)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    shown = ("execute_result", "display_data")
    return notebook, [o["data"] for o in outputs if o.output_type in shown]


def dicts(results):
    """The dictionaries that cells ended with."""
    texts = [data["text/plain"] for data in results]
    return [ast.literal_eval(text) for text in texts if text.startswith("{")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_cleared(path):
    cells = [cell for cell in load(path.stem).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_losses_are_composed_and_fit(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")  # it trains for long
    _, results = results_of("compose_losses")
    assert sum("image/png" in data for data in results) == 4
    (distances,) = dicts(results)
    assert distances["midpoint, 8 steps"] < 0.1
    assert distances["one step of the map"] < 0.15
    assert distances["the mean alone"] > 0.5


@pytest.mark.slow
def test_an_algorithm_of_your_own_trains_the_quickstart(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    notebook, results = results_of("your_own_algorithm")
    (module,) = [c.source for c in notebook.cells if c.source.startswith("%%writefile")]
    assert len(module.splitlines()) < 40
    assert sum("image/png" in data for data in results) == 1
    (accuracy,) = dicts(results)
    assert accuracy["after"] > accuracy["before"]
