"""tools/kill_test.py, shortened: a run that is killed ends like one that is not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import kill_test

CONFIG = Path(__file__).with_name("tiny_config.py")


def test_killed_runs_end_like_whole_ones(tmp_path):
    command = [sys.executable, kill_test.__file__, f"--config={CONFIG}"]
    command += [f"--workdir={tmp_path}", "--kills=3", "--config.evaluation.every=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
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
