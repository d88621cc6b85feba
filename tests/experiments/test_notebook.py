"""The notebooks run from the first cell to the last, and show what they say."""

import ast
import pathlib

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 1800  # of a cell; the longest took three minutes on a core that others used too
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))


def load(name):
    (path,) = [path for path in NOTEBOOKS if path.stem == name]
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """As a user has it; eight virtual devices would be in one another's way."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def results_of(name):
    """The notebook, executed, and what its cells displayed."""
    notebook = load(name)
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(ROOT)}}
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


@pytest.mark.slow
def test_the_anatomy_of_a_critic():
    _, results = results_of("critic_anatomy")
    assert sum("image/png" in data for data in results) == 4
    one_step, distances, laws, task, known = dicts(results)

    # The best field of all gives the mean in one step, and nothing else.
    assert abs(one_step["mean after one step"] - 0.2) < 1e-3  # -1, 0, 1 with .3, .2, .5
    assert one_step["spread after one step"] < 1e-5
    assert one_step["distance after 64 steps"] < 0.05
    assert distances["one step of the field"] > 0.6
    assert distances["one step of the map"] < 0.15 and distances["four midpoint steps"] < 0.15

    # Both rules have one mean; of the spread at the prompt averages leave little more than half.
    assert abs(laws["mean, mixture"] - laws["mean, average"]) < 0.03
    assert abs(laws["spread, mixture"] - laws["spread, truth"]) < 0.03
    assert laws["spread, average"] < 0.65 * laws["spread, truth"]
    assert laws["worst tenth, average"] > laws["worst tenth, truth"] + 0.3

    assert 0.4 < task["accuracy"] < 0.9 and task["ceiling"][-1] == 1.0
    assert known["and confidence"] > 0.8
    assert known["frozen states"] < 0.1 and known["own trunk"] < 0.4
    assert known["own trunk, told"] > known["own trunk"] + 0.1
