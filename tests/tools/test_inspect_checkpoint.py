"""tools/inspect_checkpoint.py: complete and cut-off checkpoints, parts and arrays."""

import subprocess
import sys
from pathlib import Path

import inspect_checkpoint
import jax
import jax.numpy as jnp
import optax
from tiny import Markov

from dfpo_jax.algorithms import AlgorithmConfig, compose
from dfpo_jax.critics import Critics
from dfpo_jax.sharding import create_mesh
from dfpo_jax.training.checkpoint import Checkpointer
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.update import Schedule

SCRIPT = Path(inspect_checkpoint.__file__)


def test_what_is_there_is_listed(tmp_path):
    model = Markov()
    optimizers = {name: optax.sgd(0.1) for name in ("policy", "critic")}
    algorithm = compose(model, AlgorithmConfig(Critics("scalar")), 1.0)
    learner = Learner(model, algorithm, optimizers, Schedule(), create_mesh())
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(learner.start(jax.random.key(0)), 0.25)
    checkpoints.close()
    (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir()
    checkpoints = Checkpointer(tmp_path)
    assert inspect_checkpoint.describe_steps(checkpoints) == [
        "iteration 0: intact, held-out accuracy 25.0%",
        "1.orbax-checkpoint-tmp: incomplete",
    ]
    arrays = checkpoints.describe(0)
    checkpoints.close()
    # Embedding and head of Markov, float32.
    parts = inspect_checkpoint.describe_arrays(arrays, each=False)
    assert f"params/policy: 2 arrays, {2 * 20 * 16 * 4 / 1024:.1f} KiB" in parts
    each = inspect_checkpoint.describe_arrays(arrays, each=True)
    assert "params/policy/embedding  [20, 16] float32  1.2 KiB" in each
    assert each[-1] == parts[-1] and each[-1].startswith(f"total: {len(arrays)} arrays")


def test_sizes_have_units():
    arrays = {"a": jax.ShapeDtypeStruct((3, 2**30), jnp.bfloat16)}
    assert inspect_checkpoint.describe_arrays(arrays, False)[-1] == "total: 1 arrays, 6.0 GiB"


def test_a_directory_without_checkpoints_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, str(SCRIPT), f"--workdir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "holds no checkpoints" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "checkpoints").exists()
