"""Training commands of the README and of configs/: they parse; those for a file need no network."""

import ast
import json
import pathlib
import re
import shlex

import pytest
from command_lines import read
from pretrained_models import save_tiny

from dfpo_jax.training.config import Config, parse_config
from dfpo_jax.training.run import build_run

ROOT = pathlib.Path(__file__).resolve().parents[2]


def commands(text):
    """The arguments of every training command in a text, as lists of words."""
    lines = re.findall(r"python experiments/train\.py (--.*)", text.replace("\\\n", " "))
    values = {"$seed": "1", "$name": "hl_gauss"}
    return [shlex.split(re.sub(r"\$\w+", lambda x: values[x[0]], line)) for line in lines]


FILES = sorted(ROOT.glob("configs/*.py"))
DOCSTRINGS = {path: ast.get_docstring(ast.parse(path.read_text())) for path in FILES}
TEXTS = [(ROOT / "README.md").read_text(), *DOCSTRINGS.values()]
COMMANDS = [words for text in TEXTS for words in commands(text)]


def configuration(words, monkeypatch):
    """What train.py would run."""
    monkeypatch.chdir(ROOT)
    return parse_config(read(monkeypatch, *words))


@pytest.mark.parametrize("path", DOCSTRINGS, ids=lambda path: path.name)
def test_every_configuration_shows_its_command(path):
    program = "compare" if path.name.startswith("study_") else "train"
    first = re.search(r"python experiments/(\w+)\.py --config=(\S+) --workdir=", DOCSTRINGS[path])
    assert first.groups() == (program, f"configs/{path.name}")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_it_parses(words, monkeypatch):
    assert isinstance(configuration(words, monkeypatch), Config)


def test_columns_of_a_file_are_settings_like_others(monkeypatch):
    columns = {"messages": "talk", "choices": "('a', 'b')", "verifiers": "{'x': 'exact'}"}
    words = [f"--config.task.parameters.{key}={value}" for key, value in columns.items()]
    found = configuration(["--config=configs/jsonl.py", *words], monkeypatch).task.parameters
    assert (found["messages"], found["choices"]) == ("talk", ("a", "b"))
    assert found["verifiers"] == {"x": "exact"} and found["answer"] == "answer"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("files")
    save_tiny(directory / "model", max_positions=1024)
    columns = ("question", "problem", "answer", "target")
    rows = [[f"What is {i} + 1?"] * 2 + [f"#### {i + 1}.0", i + 1.0] for i in range(40)]
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    (directory / "train.jsonl").write_text("\n".join(lines))
    pairs = [
        {"prompt": row[0], "chosen": str(i + 1), "rejected": "0"} for i, row in enumerate(rows)
    ]
    (directory / "preferences.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return directory


OF_FILES = [words for words in COMMANDS if any(".jsonl" in word for word in words)]
OF_VALUE_MODELS = [w for w in OF_FILES if any("critic.source" in x for x in w)]


def test_a_value_model_that_is_not_there_is_named(directory, monkeypatch):
    (words,) = OF_VALUE_MODELS
    with pytest.raises(ValueError, match="critic.source is 'runs/value_model', and there is no "):
        run_of(words, directory, monkeypatch)


def run_of(words, directory, monkeypatch):
    """The run of a command whose files lie in a directory."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [re.sub(r"\w+\.jsonl", lambda found: str(directory / found[0]), x) for x in words]
    words += [f"--config.weights.source={directory / 'model'}", "--config.mesh.fsdp=1"]
    return build_run(configuration(words, monkeypatch))


@pytest.mark.parametrize("words", [w for w in OF_FILES if w not in OF_VALUE_MODELS], ids=" ".join)
def test_a_file_and_a_directory_of_weights_are_enough(words, directory, monkeypatch):
    run = run_of(words, directory, monkeypatch)
    assert list(run.evaluations) == ["in_domain"]
    (item, *others), task = run.evaluations["in_domain"].items, run.train_task
    assert len(others) < 20 and item.prompt.startswith("What is ")
    assert [task.score(item, text) for text in (item.answer, "none")] == [1.0, 0.0]
