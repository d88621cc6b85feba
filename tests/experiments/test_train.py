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
        ("--config.advantage.gae.lambda_=1.5", "config.advantage.gae.lambda_ is 1.5"),
        ("--config.train.iteration=3", "is not a setting; the nearest is config.train.iterations"),
        ("--noconfig.log.tensorbord", "config.log.tensorbord is not a setting; the nearest is"),
        ("--config.nosuch=3", "config.nosuch is not a setting, and none has a name like it"),
        ("--config.task.parameters.a=1", "--config.task.parameters=\"{'a': ...}\""),
        ("--config.train.prompts=many", "prompts"),
        ("--config=configs/quickstart.py:foo", "error: configs/quickstart.py:foo: the argument"),
        ("--config.model.lora.targets=('query','mlp')", "some of query, key, value, output, gate"),
        ("--config=configs/nowhere.py", "there is no Python file 'configs/nowhere.py'"),
        ("junk", "unexpected argument 'junk'; options start with --"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(tmp_path, override, named):
    workdir = tmp_path / "run"
    done = train("--config=configs/quickstart.py", f"--workdir={workdir}", override)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0]
    assert "Traceback" not in lines[0] and not workdir.exists()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("def get_config():\n    return {}", "TypeError: get_config returned {}; it must be a"),
        ("import nowhere", ", line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("def get_config():\n    raise ValueError('not\\ntoday')", "error: not today"),
    ],
)
def test_what_a_configuration_file_raises_is_told(tmp_path, content, error):
    (tmp_path / "mine.py").write_text(content)
    done = train(f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path}")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert error in done.stderr


def test_a_setting_that_a_file_leaves_out_is_told_from_one_there_is_not(tmp_path):
    content = "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()"
    (tmp_path / "mine.py").write_text(content)
    done = train(f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path}", "--config.seed=1")
    assert done.returncode == 2 and "config.seed is left out by" in done.stderr


@pytest.mark.parametrize(
    ("program", "arguments", "error"),
    [
        ("tools/inspect_checkpoint.py", ["junk", "--workdir=x"], "unexpected argument 'junk'"),
        ("tools/benchmark.py", ["--only=junk"], "--only=junk: there are train_step,"),
        ("tools/kill_test.py", [], "--config must have a value"),
        ("tools/kill_test.py", ["--config=a", "--workdir=b", "c"], "unexpected argument 'c'"),
        ("experiments/token_mdp.py", ["--rows=junk"], "'junk' does not start with one of scalar"),
    ],
)
def test_every_program_tells_a_wrong_flag_in_one_line(program, arguments, error):
    command = [sys.executable, program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and error in lines[0]


TALK = """
import logging
from absl import logging as absl_logging
from dfpo_jax.training import command_line

def main():
    logging.getLogger("dfpo_jax.training.loop").info("going on")
    logging.getLogger("dfpo_jax.training.loop").warning("take care")
    logging.getLogger("jax._src.xla_bridge").info("no such backend")
    logging.getLogger("jax._src.xla_bridge").warning("a slow device")
    absl_logging.info("saving to checkpoints/3")

command_line.run(main)
"""


def test_programs_show_their_own_words_and_real_warnings_and_with_verbose_everything():
    shown = {}
    for flag in ("--noverbose", "--verbose"):
        command = [sys.executable, "-c", TALK, flag]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and not done.stdout, done.stderr
        shown[flag] = done.stderr.strip().splitlines()
    ours, careful, slow = shown["--noverbose"]
    assert (ours, careful) == ("going on", "warning: take care")
    assert slow.startswith("W") and slow.endswith("] a slow device")
    more = [line for line in shown["--verbose"] if line not in (ours, careful)]
    words = [line.rpartition("] ")[2] for line in more]
    assert words == ["no such backend", "a slow device", "saving to checkpoints/3"]


def test_a_library_that_is_not_installed_is_not_talked_of():
    code = "import dfpo_jax.tokenizers"  # transformers tells who imports it without PyTorch
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_training_needs_a_directory_unless_it_is_only_checked():
    done = train("--config=configs/quickstart.py")
    assert done.returncode == 2
    assert done.stderr == "error: --workdir must be set, or --check\n"
