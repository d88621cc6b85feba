"""Comparisons with other trainers: refusals, turns, ratios, failures; processes are scripted."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from _benchmark import rivals
from _rivals.work import Work, command, reward

WORK = rivals.WORKS["check"]
SCRIPT = """
import json, pathlib, sys
side, here = {side!r}, pathlib.Path(__file__).parent
work = json.loads(sys.argv[1])["work"]
turns = here / "turns"
turn = turns.read_text().split().count(side) if turns.exists() else 0
with turns.open("a") as file:
    file.write(side + "\\n")
print("a line of a library", file=sys.stderr)
print("progress 100 %")
{code}
"""


def answer(seconds, **others):
    """Source that prints an answer, after others; `seconds` is an expression of the turn."""
    said = {"first_seconds": 9.0, "prompt_tokens": [64] * 2, "response_tokens": [36] * 2}
    said |= {
        "phases": [{}] * 2,
        "peak_bytes": 2**30,
        "parameters": 7,
        "versions": {"package": "1.2"},
    } | others
    return f"print(json.dumps({said!r} | {{'seconds': {seconds}}}))"


def scripts(folder, **codes):
    for side, code in codes.items():
        (folder / f"run_{side}.py").write_text(SCRIPT.format(side=side, code=code))


def compared(folder, repeats, names=("trl", "tunix"), work=WORK):
    pythons = dict.fromkeys(names, sys.executable)
    return list(rivals.compare(pythons, {"check": work}, repeats, folder))


def test_ratios_are_of_neighbours_in_time_and_of_medians(tmp_path):
    tells = "import os; (here / 'kept').open('a').write(os.environ['XDG_CACHE_HOME'] + chr(10))"
    phases = [{"sample": 0.25, "update": 1.0}, {"sample": 0.75, "update": 1.0}]
    own = answer("[2.0 * 10**turn, 2.0 * 10**turn]", peak_bytes=2**31, phases=phases)
    scripts(
        tmp_path,
        dfpo_jax=f"{tells}\n{own}",
        trl=answer("[4.0 * 10**turn, (4.0 + 4.0 * turn) * 10**turn]", versions={"trl": "1.16"}),
        tunix=answer("[8.0 * 10**turn, 8.0 * 10**turn]"),
    )
    trl, tunix = compared(tmp_path, 2)
    turns = (tmp_path / "turns").read_text().split()
    assert turns == ["trl", "dfpo_jax", "tunix", "tunix", "dfpo_jax", "trl"]
    kept = (tmp_path / "kept").read_text().splitlines()
    assert len(kept) == 2 and kept[0] == kept[1]  # what the first turn compiled, the second finds
    assert (trl["work"], trl["rival"], tunix["rival"]) == ("check", "trl", "tunix")
    assert trl["ratio"] == pytest.approx([1 / 3, 5 / 12, 1 / 2])
    assert tunix["ratio"] == pytest.approx([1 / 4] * 3)
    assert trl["seconds"] == [11.0, 32.0] and trl["peak_ratio"] == 2.0
    assert json.loads(json.dumps(trl)) == trl
    assert trl["phases"] == tunix["phases"] == {"sample": 0.5, "update": 1.0}
    line = rivals.line(trl)
    assert line.startswith(
        "| check | trl | 0.42 (0.33 to 0.50) | 11.00, 32.00 | sample 0.50, update 1.00 "
        "| 9.0 (9.0), 9.0 | 2.00 | 2.00, "
    )
    assert line.endswith(" 1.00 | 64 + 36, 36 | trl 1.16 |")
    assert line.count("|") == rivals.HEADER.partition("\n")[0].count("|")


def test_ragged_responses_are_compared_by_token(tmp_path):
    ragged = rivals.WORKS["check_ragged"]
    scripts(tmp_path, dfpo_jax=answer("[1.0, 1.0]"))
    scripts(tmp_path, tunix=answer("[2.0, 2.0]", response_tokens=[86, 136]))
    (row,) = compared(tmp_path, 1, ["tunix"], ragged)
    assert row["ratio"] == pytest.approx([(1 / 100) / ((2 / 150 + 2 / 200) / 2)] * 3)
    assert row["response_tokens"] == [36.0, 111.0]
    (row,) = compared(tmp_path, 1, ["tunix"])
    assert row["error"] == "other work: response_tokens [86, 136] of tunix, [36, 36] of dfpo_jax"
    scripts(tmp_path, tunix=answer("[2.0, 2.0]", parameters=8))
    (row,) = compared(tmp_path, 1, ["tunix"], ragged)
    assert row["error"] == "other work: parameters 8 of tunix, 7 of dfpo_jax"


def test_a_failure_shows_the_end_of_stderr_and_ends_its_own_turns_alone(tmp_path):
    fails = "print('x' * 5000 + ' no such cache', file=sys.stderr); sys.exit(3)"
    scripts(tmp_path, dfpo_jax=answer("[1.0, 1.0]"), trl=fails, tunix=answer("[2.0, 2.0]"))
    trl, tunix = compared(tmp_path, 2)
    assert (tmp_path / "turns").read_text().split().count("trl") == 1
    assert tunix["ratio"] == [0.5] * 3
    line = rivals.line(trl)
    assert line.startswith("check, trl: trl failed with exit code 3; the end of its stderr:\nxx")
    assert line.endswith(" no such cache") and len(line) < 1600
    scripts(tmp_path, dfpo_jax="print('not JSON')")
    assert {row["error"].partition(";")[0] for row in compared(tmp_path, 2)} == {
        "dfpo_jax answered 'not JSON'"
    }
    scripts(tmp_path, dfpo_jax="print('{}')")
    with pytest.raises(rivals.RivalError, match="^dfpo_jax answered '{}'; .*\na line of a lib"):
        rivals.ask("dfpo_jax", sys.executable, WORK, tmp_path)


def test_environments_that_cannot_work_are_refused(tmp_path):
    missing, text = str(tmp_path / "python"), tmp_path / "text"
    text.write_text("no program")
    assert rivals.environments({"trl": None, "tunix": None}) == {}
    assert rivals.compare({}, {"check": WORK}, 1) and not compared(tmp_path, 1, [])
    refusals = {missing: "there is no such file", str(text): "it does not run Python code"}
    for path, words in refusals.items():
        with pytest.raises(ValueError, match=f"^--tunix={path}: {words}$"):
            rivals.environments({"tunix": path})
    with pytest.raises(ValueError, match="no module no_such; .* -m pip install no-such-name$"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(rivals.RIVALS, "no_such", "no-such-name")
            rivals.environments({"no_such": sys.executable})
    assert rivals.environments({"json": sys.executable}) == {"json": sys.executable}
    with pytest.raises(ValueError, match="^--works=big: there are smollm2, ragged, small, check"):
        rivals.chosen(["check", "big"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("only", "words"),
    [("inference", "--trl is of the benchmark rivals"), ("rivals", "no such file")],
)
def test_flags_are_refused_in_one_line(only, words):
    tool = Path(rivals.__file__).parents[1] / "benchmark.py"
    arguments = [sys.executable, tool, f"--only={only}", "--trl=/no/python"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_the_work_travels_and_its_prompts_end_no_response():
    *_, message = command("python", "script.py", WORK)
    assert Work(**json.loads(message)["work"]) == WORK
    for work in rivals.WORKS.values():
        assert work.prompts % work.pieces == 0
        assert (len(work.end_ids) == work.ends) or work.end_ids == (work.vocab_size,)
    work = dataclasses.replace(rivals.WORKS["check_ragged"], prompt_length=50)
    batches = work.batches()
    assert len(batches) == work.total and batches == work.batches()
    ids = [[int(x) for x in text.split()] for batch in batches for text in batch]
    assert len(ids) == work.total * work.prompts and {len(row) for row in ids} == {50}
    assert work.ends <= min(map(min, ids)) and max(map(max, ids)) < work.vocab_size
    assert reward("12 7 4 9") == 0.5 and reward("") == 0.0


@pytest.mark.slow
def test_this_library_does_its_side_of_the_work():
    folder = Path(rivals.__file__).parents[1] / "_rivals"
    arguments = command(sys.executable, folder / "run_dfpo_jax.py", WORK)
    environment = os.environ | {"PYTHONPATH": str(folder.parents[1])}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    rows = WORK.prompts * WORK.samples
    assert said["response_tokens"] == [rows * WORK.response_length] * len(said["seconds"])
    assert said["prompt_tokens"] == [rows * WORK.prompt_length] * len(said["seconds"])
    for phases, seconds in zip(said["phases"], said["seconds"], strict=True):
        assert 0.5 * seconds < phases["sample"] + phases["prepare"] + phases["update"] < seconds
