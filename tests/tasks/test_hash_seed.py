"""reasoning_gym tasks in other processes: which data sets depend on Python's hash seed."""

import os
import pathlib
import subprocess
import sys

import pytest
from reasoning_gym.factory import DATASETS

from dfpo_jax import tasks
from dfpo_jax.tasks import ReasoningGymTask, reasoning_gym

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 3}
PROMPT = "{metadata[expression]}="


def python(code, hash_seed):
    """A process that runs `code`."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=pathlib.Path(tasks.__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_batch_is_the_same_in_another_process():
    code = (
        "from dfpo_jax.tasks import ReasoningGymTask as T;"
        f"t = T('chain_sum', {SUMS!r}, prompt={PROMPT!r}, split='held_out', seed=3);"
        "print([i.prompt for i in t.batch(2, 5)])"
    )
    out, error = python(code, hash_seed="12").communicate()
    task = ReasoningGymTask("chain_sum", SUMS, prompt=PROMPT, split="held_out", seed=3)
    assert out.strip() == str([item.prompt for item in task.batch(2, 5)]), error


@pytest.mark.parametrize("hash_seed", ["0", "1", "random"])
def test_a_data_set_that_depends_on_the_hash_seed_needs_a_fixed_one(hash_seed):
    code = """
from dfpo_jax.tasks import ReasoningGymTask
from reasoning_gym.composite import DatasetSpec

print(len(ReasoningGymTask("chain_sum", {}).batch(0, 2)))
parts = [DatasetSpec("chain_sum", 1.0, {}), DatasetSpec("ransom_note", 1.0, {})]
for dataset, parameters in (("word_ladder", {}), ("composite", {"datasets": parts})):
    try:
        print(len(ReasoningGymTask(dataset, parameters).batch(0, 2)))
    except ValueError as error:
        print(error)
"""
    out, error = python(code, hash_seed=hash_seed).communicate()
    lines = out.splitlines()
    assert len(lines) == 3 and lines[0] == "2", error
    if hash_seed == "0":
        assert lines[1:] == ["2", "2"]
    else:
        for line, name in zip(lines[1:], ("word_ladder", "ransom_note"), strict=True):
            assert f"dataset '{name}'" in line and "PYTHONHASHSEED=0" in line


@pytest.mark.slow
def test_the_data_sets_that_depend_on_the_hash_seed_are_known():
    """Nor do others depend on the process in any other way."""
    code = """
import sys, zlib
from reasoning_gym.factory import DATASETS
from dfpo_jax.tasks import reasoning_gym as module
from dfpo_jax.tasks.verifiers import VerifierConfig

def canonical(value):
    if isinstance(value, dict):
        return {repr(key): canonical(x) for key, x in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(repr(canonical(x)) for x in value)
    return [canonical(x) for x in value] if isinstance(value, (list, tuple)) else repr(value)

module._HASH_DEPENDENT = frozenset()
sys.stdout, out = sys.stderr, sys.stdout
# Entries that show it where the first do not; 26 would differ by numpy's global generator.
others = {
    "codeio": [26, 170],
    "intermediate_integration": [25],
    "polynomial_multiplication": [5],
}
for name in sorted(set(DATASETS) - {"composite"}):
    task = module.ReasoningGymTask(name, {}, verifier=VerifierConfig("exact"))
    entries = [canonical(task._item(index)) for index in [0, 1, 2, *others.get(name, [])]]
    print(name, zlib.crc32(repr(entries).encode()), file=out)
"""
    processes = [python(code, hash_seed=hash_seed) for hash_seed in ("0", "5")]
    outputs = [process.communicate() for process in processes]
    first, second = (dict(line.split() for line in out.splitlines()) for out, _ in outputs)
    assert sorted(first) == sorted(second) == sorted(set(DATASETS) - {"composite"}), outputs[0][1]
    different = {name for name in first if first[name] != second[name]}
    assert different == reasoning_gym._HASH_DEPENDENT
