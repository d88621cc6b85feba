"""JSONL tasks: splits, order, columns, errors that name the line, presets."""

import json
import sys
import types

import pytest

from dfpo_jax.tasks import JsonlTask
from dfpo_jax.tasks.base import is_held_out
from dfpo_jax.tasks.presets import PRESETS
from dfpo_jax.tasks.verifiers import VerifierConfig
from dfpo_jax.training.sources import TaskConfig

ROWS = [{"question": f"{i} + 1?", "answer": f"work #### {i + 1}"} for i in range(200)]
HASHES = {"answer_extract": "hashes"}


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "sums.jsonl", ROWS)


def test_rows_become_items(file):
    task = JsonlTask(file, HASHES, held_out_percent=0)
    items = task.batch(0, 200)
    assert {(i.prompt, i.answer, i.index) for i in items} == {
        (f"{i} + 1?", str(i + 1), i) for i in range(200)
    }
    assert task.name == "sums" and task.passed_over == 0
    assert task.score(items[0], f" {items[0].answer}\n") == 1.0
    assert task.score(items[0], "work") == 0.0


def test_batches_are_a_function_of_seed_and_step(file):
    used, fresh = JsonlTask(file, HASHES), JsonlTask(file, HASHES)
    used.batch(3, 10)
    used.items(5)
    assert used.batch(5, 64) == fresh.batch(5, 64)
    assert used.batch(5, 8) == used.batch(5, 64)[:8]
    assert used.batch(5, 64) != used.batch(6, 64)
    assert used.batch(5, 64) != JsonlTask(file, HASHES, seed=1).batch(5, 64)
    count = len(used.items(1000))
    prompts = [item.prompt for item in used.batch(1, 2 * count)]
    assert len(set(prompts[:count])) == count and set(prompts[:count]) == set(prompts[count:])
    with pytest.raises(ValueError, match="step=-1"):
        used.batch(-1, 1)


def test_the_held_out_split_by_hash(file):
    train = JsonlTask(file, HASHES, held_out_percent=20).items(1000)
    held_out = JsonlTask(file, HASHES, held_out_percent=20, split="held_out").items(1000)
    assert {i.prompt for i in held_out} == {
        row["question"] for row in ROWS if is_held_out(row["question"], 20)
    }
    assert len(train) + len(held_out) == 200 and 20 < len(held_out) < 60
    assert {i.prompt for i in train}.isdisjoint(i.prompt for i in held_out)


def test_a_held_out_file_is_kept_from_training(file, tmp_path, caplog):
    other = write(tmp_path / "test.jsonl", ROWS[:3] + [{"question": "new?", "answer": "#### 1"}])
    parameters = {**HASHES, "held_out": other}
    held_out = JsonlTask(file, parameters, split="held_out").items(10)
    assert {i.prompt for i in held_out} == {"0 + 1?", "1 + 1?", "2 + 1?", "new?"}
    train = JsonlTask(file, parameters).items(1000)
    assert len(train) == 197 and "3 prompts are held out too" in caplog.text


def test_rows_that_are_not_accepted_are_counted(file, caplog):
    task = JsonlTask(file, HASHES, held_out_percent=0, accepts=lambda i: len(i.prompt) < 8)
    assert task.passed_over == 100 and "skipped 100 of 200 rows of train" in caplog.text
    with pytest.raises(ValueError, match="no row is left"):
        JsonlTask(file, HASHES, accepts=lambda i: False)


def test_a_prompt_that_occurs_twice_counts_once(tmp_path, caplog):
    path = write(tmp_path / "twice.jsonl", [*ROWS[:3], {**ROWS[0], "answer": "#### other"}])
    task = JsonlTask(path, HASHES, held_out_percent=0)
    assert sorted(i.answer for i in task.items(10)) == ["1", "2", "3"]
    assert task.passed_over == 1
    assert "skipped 1 of 4 rows of train, 1 of which repeat a prompt" in caplog.text


@pytest.mark.parametrize(
    ("value", "text"), [(28.0, "28"), (-3.0, "-3"), (0.5, "0.5"), (7, "7"), ("28.0", "28.0")]
)
def test_whole_numbers_have_no_fraction(tmp_path, value, text):
    path = write(tmp_path / "numbers.jsonl", [{"question": "a", "answer": value}])
    task = JsonlTask(path, {}, held_out_percent=0)
    (item,) = task.items(1)
    assert item.answer == text and task.score(item, text) == 1.0
    choices = {"answer": "answer", "choices": ["options"]}
    path = write(tmp_path / "choices.jsonl", [{"options": ["no", value], "answer": value}])
    (item,) = JsonlTask(path, choices, prompt="{choices}", held_out_percent=0).items(1)
    assert f"{item.answer}) {text}" in item.prompt.splitlines()


def test_conversations(tmp_path):
    talk = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2+3"}]
    path = write(tmp_path / "talks.jsonl", [{"talk": talk, "answer": 5}])
    (item,) = JsonlTask(path, {"messages": "talk"}, held_out_percent=0).items(2)
    assert item.conversation == tuple(talk) and item.prompt == "Add.\n\n2+3"
    assert item.answer == "5"
    bad = write(tmp_path / "bad.jsonl", [{"talk": talk[:1], "answer": 5}])
    with pytest.raises(ValueError, match="bad.jsonl, line 1: messages must be"):
        JsonlTask(bad, {"messages": "talk"})


def test_choices_are_shuffled_by_the_row_alone(tmp_path):
    rows = [{"q": f"{i}?", "r": f"right {i}", "w1": "no", "w2": "never"} for i in range(30)]
    path = write(tmp_path / "choices.jsonl", rows)
    parameters = {"answer": "", "choices": ["r", "w1", "w2"]}
    task = JsonlTask(
        path,
        parameters,
        prompt="{q}\n{choices}",
        held_out_percent=0,
        verifier=VerifierConfig("choice"),
    )
    items = task.items(30)
    for item in items:
        number = item.prompt.split("?")[0]
        assert f"\n{item.answer}) right {number}" in item.prompt
        assert task.score(item, f"The answer is ({item.answer}).") == 1.0
    assert {item.answer for item in items} == {"A", "B", "C"}
    listed = [{"q": "?", "options": ["x", "y", "z"], "answer": a} for a in ("y", "B", 1)]
    for row in listed:
        path = write(tmp_path / "listed.jsonl", [row])
        settings = {"answer": "answer", "choices": ["options"]}
        (item,) = JsonlTask(path, settings, prompt="{choices}", held_out_percent=0).items(1)
        assert f"{item.answer}) y" in item.prompt
    write(tmp_path / "listed.jsonl", [{**listed[0], "answer": "w"}])
    with pytest.raises(ValueError, match="line 1: answer 'w' is none of the choices"):
        JsonlTask(path, settings, prompt="{choices}")


def test_each_row_may_name_its_verifier(tmp_path):
    rows = [
        {"question": "a", "answer": "The Cat", "kind": "text"},
        {"question": "b", "answer": "B", "kind": "letter"},
    ]
    path = write(tmp_path / "kinds.jsonl", rows)
    parameters = {"verifier": "kind", "verifiers": {"text": "normalised", "letter": "choice"}}
    task = JsonlTask(path, parameters, held_out_percent=0)
    items = sorted(task.items(2), key=lambda item: item.prompt)
    assert [v.reward for v in task.judge(items, ["cat", "(B)"])] == [1.0, 1.0]
    assert [v.reward for v in task.judge(items, ["dog", "(C)"])] == [0.0, 0.0]
    tagged = VerifierConfig(extract="tags")
    task = JsonlTask(path, parameters, held_out_percent=0, verifier=tagged)
    for response, found in (
        ("<answer>dog</answer>", ["dog", None]),  # no letter
        ("A <answer> (C) </answer>", ["(C)", "(C)"]),
        ("(C)", [None, None]),
    ):
        assert [task.answer(item, response) for item in items] == found
    with pytest.raises(ValueError, match="line 1: verifier name is 'text'"):
        JsonlTask(path, {"verifier": "kind"})


def test_rewards_without_part_credit_and_a_reference_that_cannot_be_judged(file):
    settings = VerifierConfig("number", low=-1.0, on_failure=0.25)
    task = JsonlTask(file, HASHES, partial_credit=False, verifier=settings)
    item = task.items(1)[0]
    assert [task.score(item, x) for x in (item.answer, "0.5")] == [1.0, -1.0]
    with pytest.raises(
        ValueError, match="line 1: the reference answer '.*' is not a number, which"
    ):
        JsonlTask(file, {"answer": "question"}, prompt="{answer}", verifier=settings)


@pytest.mark.parametrize(
    ("lines", "parameters", "message"),
    [
        ('{"question": "a", "answer": "b"}\n{"question": "a"', {}, "line 2 is not JSON"),
        ("[1]", {}, "line 1 is list"),
        ('\n{"question": "a", "answer": null}', {}, "rows.jsonl, line 2: column 'answer' is null"),
        (
            '{"question": "a", "answer": 1, "options": ["b", null]}',
            {"choices": ["options"]},
            "line 1: column 'options' is null",
        ),
        ("\n\n", {}, "has no rows"),
        ('{"question": "a"}', {}, "line 1 has no 'answer'; it has question"),
        ('\n{"answer": "a"}', {}, "line 2 has no 'question', which task.prompt names"),
        ('{"question": "a", "answer": "b"}', HASHES, "line 1: hashes finds no answer in 'b'"),
        ('{"question": "a", "answer": "b"}', {"ansver": "b"}, "parameters key='ansver'"),
        ('{"question": "a", "answer": "b"}', {"answer_extract": "x"}, "extract is 'x'"),
        (None, {}, "is not a file"),
    ],
)
def test_what_is_broken_is_named_with_its_line(tmp_path, lines, parameters, message):
    path = tmp_path / "rows.jsonl"
    if lines is not None:
        path.write_text(lines)
    with pytest.raises(ValueError, match=message):
        JsonlTask(str(path), parameters)


def fake_hub(monkeypatch, rows):
    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        return rows

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_a_held_out_file_belongs_to_a_file():
    with pytest.raises(ValueError, match="held_out='test.jsonl' needs a file for dataset='a/b'"):
        JsonlTask("a/b", {"held_out": "test.jsonl"})


def test_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"dfpo-jax\[data\]"):
        TaskConfig(preset="gsm8k").build("train")


# Rows with the columns that the data sets have.
SAMPLES = {
    "gsm8k": {"question": "2+3?", "answer": "2+3=5\n#### 1,005"},
    "math500": {"problem": "2+3?", "answer": "\\frac{1}{2}"},
    "aime": {"problem": "2+3?", "answer": "204"},
    "amc": {"problem": "2+3?", "answer": 5.0},
    "minerva": {"question": "2+3?", "answer": "5"},
    "gpqa": {"Question": "2+3?", "Correct Answer": "5"}
    | {f"Incorrect Answer {i}": f"{i}" for i in (1, 2, 3)},
    "simpleqa": {"problem": "Who?", "answer": "Ada Lovelace"},
    "hle": {"question": "Who?", "answer": "Ada", "answer_type": "exactMatch", "image": ""},
}
RIGHT = {
    "gsm8k": "so #### 1005",
    "math500": "so \\boxed{0.5}",
    "aime": "so \\boxed{204}",
    "amc": "so \\boxed{5}",
    "minerva": "so \\boxed{5}",
    "simpleqa": "<answer>ada lovelace.</answer>",
    "hle": "<answer>Ada</answer>",
}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets(monkeypatch, name):
    if PRESETS[name]["verifier"]["name"] == "math_verify":
        pytest.importorskip("math_verify")
    asked = fake_hub(monkeypatch, [SAMPLES[name]])
    columns = {"held_out_split": ""} if name == "gsm8k" else {}
    section = TaskConfig(preset=name, held_out_percent=0, parameters=columns)
    task = section.build("train")
    assert asked[0][0] == PRESETS[name]["dataset"]
    (item,) = task.items(3)
    assert item.prompt.startswith(("2+3?", "Who?")) and len(item.prompt) > 10
    assert task.score(item, RIGHT.get(name, f"({item.answer})")) == 1.0
    assert task.score(item, "\\boxed{7} <answer>7</answer> #### 7") == 0.0
    assert (task.verifier.errors, task.verifier.timeouts) == (0, 0)


def test_what_a_configuration_sets_itself_stays(file):
    section = TaskConfig(
        preset="gsm8k",
        dataset=file,
        verifier=VerifierConfig(extract="last_number", on_failure=0.5),
        parameters={"held_out_split": "validation"},
    ).resolved()
    assert (section.name, section.dataset) == ("jsonl", file)
    assert section.verifier == VerifierConfig("number", "last_number", on_failure=0.5)
    assert section.parameters["held_out_split"] == "validation"
    assert section.parameters["answer_extract"] == "hashes"
    task = section.build("train")
    item = task.items(1)[0]
    assert task.score(item, f"it is {item.answer}.") == 1.0
    default = TaskConfig().resolved()
    asked = {"name": default.name, "prompt": default.prompt, "dataset": default.dataset}
    plain = VerifierConfig("number", "none")
    section = TaskConfig(preset="gsm8k", verifier=plain, **asked).resolved()
    assert {name: getattr(section, name) for name in asked} == asked
    assert section.verifier == plain and section.resolved() == section
    with pytest.raises(ValueError, match="preset is 'gsm'; it must be one of"):
        TaskConfig(preset="gsm")
