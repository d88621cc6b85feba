"""The command line: a wrong flag is one line and exit code 2, before anything compiles."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def train(*arguments):
    command = [sys.executable, "experiments/train.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("--config.policy.gae_lambda=1.5", "gae_lambda is 1.5"),
        ("--config.policy.gae_lamda=0.9", "gae_lam"),
        ("--config.train.prompts=many", "prompts"),
        ("--config.model.lora.targets=('query','mlp')", "some of query, key, value, output, gate"),
        ("--config=configs/nowhere.py", "nowhere.py"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(tmp_path, override, named):
    workdir = tmp_path / "run"
    done = train("--config=configs/quickstart.py", f"--workdir={workdir}", override)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0]
    assert not workdir.exists()
