"""The README's tools/kill_test.py, shortened: a run that is killed ends like one that is not."""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import kill_test
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_killed_runs_end_like_whole_ones(tmp_path):
    text = (ROOT / "README.md").read_text().replace("\\\n", "")
    _, *words = shlex.split(re.search("python tools/kill_test.py .*", text)[0])
    shorter = [f"--workdir={tmp_path}", "--kills=3", "--config.train.iterations=8"]
    environment = os.environ | {"XLA_FLAGS": ""}  # one device, as a user has it
    options = {"capture_output": True, "text": True, "timeout": 1200, "cwd": ROOT}
    done = subprocess.run([sys.executable, *words, *shorter], env=environment, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kill ") == 3 and "metrics and results are equal" in done.stdout
    # What the comparison would say if they were not.
    changed = tmp_path / "changed"
    shutil.copytree(tmp_path / "killed", changed)
    rows = [json.loads(line) for line in (changed / "metrics.jsonl").read_text().splitlines()]
    rows[2]["rollout/reward"] = -5.0
    del rows[-1]
    (changed / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = kill_test.differences(tmp_path / "whole", changed)
    assert any(line.startswith("steps in metrics.jsonl") for line in found)
    assert any(line.startswith("row 2, rollout/reward") for line in found)
    assert len(found) == 2


def test_a_run_that_fails_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    def start(workdir, overrides):
        code = "import sys; print('Traceback'); print('error: no such\\tset'); print(); sys.exit(2)"
        with open(f"{workdir}.log", "a") as log:
            return subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)

    monkeypatch.setattr(kill_test, "start", start)
    ended = f"run in {tmp_path / 'whole'} ended with code 2: error: no such set (see "
    with pytest.raises(RuntimeError) as caught:
        kill_test.finish(tmp_path / "whole", [])
    assert ended in str(caught.value)
    with pytest.raises(RuntimeError, match="start 0 needed no kill, .* ended with code 2: error"):
        kill_test.kill_at_random(tmp_path / "killed", [], 1, 60.0, random.Random(0))

    def fails(overrides):
        raise RuntimeError("the run failed")

    monkeypatch.setattr(kill_test, "compare", fails)
    with pytest.raises(SystemExit) as left:
        kill_test.main([])
    assert left.value.code == 1 and capsys.readouterr().err == "error: the run failed\n"
