"""tools/launch_tpu_pod.sh: what it would run, and what it says about a wrong command line."""

import pathlib
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
ARGUMENTS = {
    "--name": "pod",
    "--zone": "us-east5-a",
    "--project": "mine",
    "--config": "configs/quickstart.py:heavy_tail",
    "--workdir": "/mnt/shared/a run",
}


def launch(*extra, without=(), **replaced):
    values = {k: replaced.get(k.strip("-"), v) for k, v in ARGUMENTS.items() if k not in without}
    command = ["bash", "tools/launch_tpu_pod.sh", *(f"{k}={v}" for k, v in values.items()), *extra]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_every_host_gets_the_code_and_starts_training():
    done = launch("--dry-run")
    assert done.returncode == 0, done.stderr
    pack, copy, install, start = (shlex.split(line) for line in done.stdout.splitlines())
    assert pack[0] == "tar" and pack[-2:] == [str(ROOT), "."]
    for command, action in ((copy, "scp"), (install, "ssh"), (start, "ssh")):
        assert command[:5] == ["gcloud", "compute", "tpus", "tpu-vm", action]
        assert {"--zone=us-east5-a", "--project=mine", "--worker=all"} <= set(command)
    assert copy[5] == pack[pack.index("-czf") + 1] and copy[6].startswith("pod:")
    assert install[5] == start[5] == "pod"
    assert "pip install" in install[-1] and "./dfpo_jax[tpu]" in shlex.split(install[-1])
    remote = shlex.split(start[-1].removeprefix("--command="))
    assert remote.index("DFPO_MULTIHOST=1") < remote.index("experiments/train.py")
    assert remote.index("PYTHONHASHSEED=0") < remote.index("experiments/train.py")
    assert "--config=configs/quickstart.py:heavy_tail" in remote
    assert "--workdir=/mnt/shared/a run" in remote  # one word on the host too


@pytest.mark.parametrize("mode", [["--mode=ssh"], ["--mode=xpk", "--tpu-type=v5p-128"]])
def test_overrides_extras_and_resume_reach_every_host(mode):
    overrides = ["--config.task.prompt=Say {x}; 'now'", "--noconfig.log.tensorboard", "--resume"]
    done = launch("--dry-run", *overrides, "--extras=tpu,data,math", *mode)
    assert done.returncode == 0, done.stderr
    words = [shlex.split(line)[-1] for line in done.stdout.splitlines()]
    assert shlex.split(words[-1].removeprefix("--command=").split(" > ")[0])[-3:] == overrides
    install = shlex.split(next(word for word in words if "pip install" in word))
    assert any(word.endswith("[tpu,data,math]") for word in install)


def test_xpk_makes_one_workload():
    done = launch("--dry-run", "--mode=xpk", "--tpu-type=v5p-128")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    command = shlex.split(line)
    assert command[:3] == ["xpk", "workload", "create"]
    assert {"--cluster=pod", "--tpu-type=v5p-128", "--workload=dfpo-quickstart"} <= set(command)
    remote = shlex.split(command[-1].removeprefix("--command="))
    assert "--workdir=/mnt/shared/a run" in remote
    assert {"PYTHONHASHSEED=0", "DFPO_MULTIHOST=1"} <= set(remote)


@pytest.mark.parametrize("missing", ARGUMENTS)
def test_a_missing_argument_gives_the_usage(missing):
    done = launch("--dry-run", without=(missing,))
    assert done.returncode == 2 and done.stdout == ""
    assert f"error: {missing} is missing" in done.stderr
    assert "tools/launch_tpu_pod.sh --name=NAME" in done.stderr and "set -euo" not in done.stderr


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--mode=xpk"], "--tpu-type is missing"),
        (["--mode=slurm"], "--mode=slurm; it must be ssh or xpk"),
        (["--nmae=pod"], "unknown argument --nmae=pod"),
        (["--config.seed"], "unknown argument --config.seed"),
        (["--extras="], "--extras is missing"),
    ],
)
def test_a_wrong_argument_is_named(extra, named):
    done = launch("--dry-run", *extra)
    assert done.returncode == 2 and named in done.stderr and done.stdout == ""


def test_the_workdir_must_be_a_path():
    done = launch("--dry-run", workdir="gs://bucket/run")
    assert done.returncode == 2 and "gs://bucket/run; it must be a path" in done.stderr


def test_a_configuration_must_exist():
    done = launch("--dry-run", config="configs/nowhere.py")
    assert done.returncode == 2 and "configs/nowhere.py" in done.stderr
    assert len(done.stderr.splitlines()) == 1
