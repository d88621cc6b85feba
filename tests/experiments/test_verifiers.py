"""The command that shows the noise of a verifier: its tables from small files."""

import json
import pathlib
import subprocess
import sys

import pytest
import verifiers
from _verifiers.tables import judged_table, kinds_table, mistakes_table, short
from _verifiers.writings import reference

from dfpo_jax.tasks.verifiers import Verifier

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGS = dict.fromkeys(
    ("dataset", "prompt", "name", "extract", "pattern", "after", "tolerance", "timeout")
)
FLAGS |= {"preset": "", "parameters": "{}"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def file(tmp_path):
    rows = [("2+3?", "work\n#### 1,005"), ("1-7?", "#### -6"), ("1/2?", "#### 0.5")]
    return write(tmp_path / "sums.jsonl", [{"question": q, "answer": a} for q, a in rows])


def test_a_preset_on_a_file_of_ones_own_makes_no_mistake(file):
    task = verifiers.section(FLAGS | {"dataset": file, "preset": "gsm8k"}).build("train")
    rows = verifiers.rehearse(task, 100)
    assert {row["kind"] for row in rows} == {"thousands", "negative", "decimal"}
    assert len(rows) > 1000 and mistakes_table(rows, 1.0, 5) == "no mistake"
    first = [row for row in rows if row["right"]][0]
    assert first["answer"] == "1,005" and first["reward"] == 1.0 and first["found"]
    table = kinds_table(rows, 1.0).splitlines()
    assert table[0].split() == ["references", "pairs", "right", "missed", "wrong", "rewarded"]
    assert [line.split()[0] for line in table[1:4]] == ["thousands", "negative", "decimal"]
    assert table[4].startswith("all ") and table[4].count("(0.0%)") == 2
    assert len(verifiers.rehearse(task, 1)) < len(rows)


def test_the_noise_of_a_verifier_that_does_not_suit_the_file_is_seen(file):
    flags = FLAGS | {"dataset": file, "name": "exact", "parameters": "{'answer_extract': 'hashes'}"}
    rows = verifiers.rehearse(verifiers.section(flags).build("train"), 100)
    missed = [row for row in rows if row["right"] and row["reward"] < 1.0]
    assert missed == [] and all(row["found"] == row["response"].strip() for row in rows)
    # A pattern that knows no sign and no separator errs both ways, and the table shows it.
    flags |= {"name": "normalised", "extract": "regex", "pattern": r"(\d[\d,.]*)"}
    rows = verifiers.rehearse(verifiers.section(flags).build("train"), 100)
    shown = mistakes_table(rows, 1.0, 1).splitlines()
    assert shown == [
        "right and missed: reference '1,005', response '1{,}005', found '005'",
        "wrong and rewarded: reference '1,005', response '-1005', found '1005'",
    ]


def test_responses_of_a_file_are_judged_and_compared(file, tmp_path):
    config = verifiers.section(FLAGS | {"dataset": file, "preset": "gsm8k"})
    task = config.build("train")
    prompt = task.everything()[0].prompt
    responses = write(
        tmp_path / "responses.jsonl",
        [
            {"prompt": prompt, "response": "#### 1005", "clean_reward": 1.0, "reward": 0.0},
            {"prompt": "another", "answer": 18, "response": "#### 18 or 19", "reward": 1.0},
            {"answer": "18", "response": "eighteen"},
        ],
    )
    rows = verifiers.judge_file(responses, task.verifier, task)
    assert [row["reward"] for row in rows] == [1.0, 0.0, 0.0]
    assert [row["found"] for row in rows] == ["1005", "18 or 19", None]
    assert [row["given"] for row in rows] == [1.0, 1.0, None]
    table = judged_table(rows)
    assert table.count("<- differs") == 1 and table.endswith("1 of 2 differ from the file")
    assert "3 responses, mean reward 0.333, 0 failures" in table
    alone = verifiers.judge_file(
        write(tmp_path / "one.jsonl", [{"answer": "5", "response": "5"}]),
        Verifier(config.verifier, "alone"),
        None,
    )
    assert alone[0]["reward"] == 1.0
    for row, message in (
        ({"response": "5"}, "line 1 has no 'answer', and its 'prompt' is none"),
        ({"answer": "5"}, "line 1: 'response' is None; it must be a text"),
    ):
        with pytest.raises(ValueError, match=message):
            verifiers.judge_file(write(tmp_path / "bad.jsonl", [row]), task.verifier, task)


def test_near_misses_differ_from_what_is_right():
    for answer in (
        "0",
        "1",
        "-5",
        "1,234",
        "0.5",
        "3/4",
        "10%",
        "$18",
        "5 km",
        "B",
        "[2,5)",
        "1,2",
    ):
        made = reference(answer)
        assert answer in made.right and len(made.right) > 1 and len(made.wrong) > 2
        assert not set(made.right) & set(made.wrong)


def test_long_texts_are_shown_by_their_end():
    assert short("a\nb") == r"'a\nb'" and short(None) == "None"
    assert short("x" * 100 + "18", width=5) == "'...xxx18'"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"name": "nmber"}, "name is 'nmber'; it must be one of"),
        ({"extract": "box"}, "extract is 'box'; it must be of"),
        ({"preset": "gsm"}, "preset is 'gsm'; it must be one of"),
        ({"parameters": "[1]"}, r"--parameters=\[1\] is not a dictionary"),
        ({"parameters": "answer"}, "--parameters=answer is not a dictionary"),
    ],
)
def test_bad_flags_are_named(flags, message):
    with pytest.raises(ValueError, match=message):
        verifiers.section(FLAGS | flags)


@pytest.mark.slow
def test_the_command_prints_one_line_where_nothing_is_given_to_judge():
    command = [sys.executable, "experiments/verifiers.py", "--response=5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.endswith("--response and --answer are given together or not at all\n")
