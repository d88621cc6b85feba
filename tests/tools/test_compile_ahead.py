"""The tools that compile for chips, without their compilers: figures, wording, exit codes, and the
programs of a small run on eight CPU devices."""

import dataclasses
import importlib.util
import pathlib
import subprocess
import sys

import compile_for_gpu
import jax
import pytest
from _ahead import gpus, report
from _ahead.chips import GIB, GPUS, TPUS
from _ahead.costs import program_costs
from _ahead.programs import PROGRAMS, Lowering

from dfpo_jax.models.config import PRESETS
from dfpo_jax.sharding import create_mesh
from dfpo_jax.training.config import parse_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIGURES = {
    "arguments": 2 * GIB,
    "results": 0,
    "aliased": GIB,
    "temporaries": 3 * GIB,
    "code": GIB / 4,
    "resident": GIB / 4,
    "peak": 5.5 * GIB,
    "flops": 197e12,
    "hbm_bytes": 819e9 / 2,
    "sent": {"all-gather": 200e9, "all-reduce": 200e9},
    "unknown_loops": 0,
    "unknown_kernels": 0,
    "lower_seconds": 1.0,
    "compile_seconds": 60.0,
}


def test_a_chip_judges_the_figures():
    x = report.judge(FIGURES, TPUS["v5e"], 4096)
    assert x["fits"] and x["spare"] == pytest.approx(1 - 5.5 / 16)
    assert x["seconds"] == pytest.approx(2.0) and x["bound"] == "ICI"
    line = report.describe("train", x)
    assert line.startswith("train: peak 5.50 GiB, 66% spare (arguments 2.00, temporaries 3.00,")
    assert "197 TFLOP" in line and "all-gather 200, all-reduce 200" in line
    rate = "0.50 of the FLOP rate, 2,048 tokens/s"
    assert f"at least 2000 ms (ICI), {rate}; compiled in 60 s" in line and "too low" not in line
    assert "FLOP rate; compiled" in report.describe("decode", report.judge(FIGURES, TPUS["v5e"]))
    large = report.judge(FIGURES | {"peak": 17 * GIB}, TPUS["v5e"])
    assert not large["fits"]
    told = report.describe("train", x | {"unknown_loops": 2})
    assert "counted too low: 2 loops once" in told


def test_a_program_the_compiler_refuses_does_not_fit():
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 20.96G of 15.75G hbm. Exceeded hbm capacity by 5.21G.\n\nTotal hbm usage >= 1G"
    )
    assert report.used_line(message) == "Used 20.96G of 15.75G hbm"
    x = report.judge({"error": report.used_line(message), "compile_seconds": 9.0}, TPUS["v5e"])
    assert not x["fits"]
    assert report.describe("train", x) == ("train: does not fit: Used 20.96G of 15.75G hbm (9 s)")


@pytest.fixture(scope="module")
def lowering():
    model = dataclasses.asdict(dataclasses.replace(PRESETS["tiny"], remat="full"))
    head = {"hidden": 2, "num_blocks": 1, "condition_dim": 2, "time_features": 1}
    config = parse_config(
        {
            "model": model,
            "sampling": {"max_new_tokens": 8},
            "train": {"prompts": 8, "samples": 4, "prompt_length": 8, "microbatches": 2},
            "log_probs": {"chunk": 4},
            "critic": {
                "flow": {"head": head, "num_samples": 1, "num_steps": 1, "num_quantiles": 3}
            },
            "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        }
    )
    return Lowering(config, create_mesh(2, 2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_of_a_small_run(lowering, name):
    lowered = lowering.lower(name)
    compiled = lowered.compile()
    costs = program_costs(compiled.as_text())
    model = lowering.config.model
    layer = 2 * model.d_model * (model.num_heads + model.num_kv_heads) * model.head_dim
    weights = model.num_layers * (layer + 3 * model.d_model * model.d_ff)
    logits = model.d_model * model.vocab_size
    # Multiplications of the decoder alone, over all devices; attention and critic come on top.
    least = {
        "prefill": 2 * (8 * 7) * weights,
        "decode": 2 * 32 * (weights + logits),
        "sample": 2 * (8 * 7) * weights + 2 * 32 * (weights + logits),  # its loop counts once
        "prepare": 2 * (32 * 16) * 2 * weights,
        "train": 2 * (16 * 16) * 2 * 4 * weights + 2 * (16 * 8) * 4 * logits,
    }[name]
    assert least < 8 * costs.flops < 3 * least
    memory = compiled.memory_analysis()
    assert costs.unknown_loops == (name == "sample")
    if name == "decode":  # the cache keeps its place
        cache = 2 * model.num_layers * 32 * 15 * model.num_kv_heads * model.head_dim * 4 / 8
        assert memory.alias_size_in_bytes >= cache
    if name == "train":  # and so does the state
        state = lowering.learner.abstract_state
        assert memory.alias_size_in_bytes > 0.9 * bytes_of(state)


def bytes_of(state):
    """One device's share of a state, from the specs alone."""
    return sum(
        x.size * x.dtype.itemsize / 2 ** sum(axis is not None for axis in x.sharding.spec)
        for x in jax.tree.leaves(state)
    )


def test_what_stays_beside_sampling(lowering):
    state = lowering.learner.abstract_state
    assert lowering.resident("train") == 0
    assert lowering.resident("decode") == pytest.approx(bytes_of(state))
    rest = bytes_of(state) - bytes_of(state.params["policy"])
    assert lowering.resident("prefill") == pytest.approx(rest)


def test_a_batch_the_mesh_does_not_divide_is_refused(lowering):
    config = lowering.config
    train = dataclasses.replace(config.train, prompts=2, samples=1, microbatches=1)
    with pytest.raises(ValueError, match="is 1; mesh data . fsdp, 4, must divide it"):
        Lowering(dataclasses.replace(config, train=train), lowering.mesh)


def test_sizes_come_with_the_weights_unless_a_hub_has_them(tmp_path, capsys):
    with pytest.raises(ValueError, match="none.gguf is no file"):
        report.with_sizes(parse_config({"weights": {"source": str(tmp_path / "none.gguf")}}))
    config = parse_config({"weights": {"source": "some/model"}})
    assert report.with_sizes(config) is config
    assert "not read from some/model: nothing is downloaded" in capsys.readouterr().out
    assert report.with_sizes(parse_config({})).model == parse_config({}).model


def test_a_gpu_is_described_to_the_compiler():
    assert gpus.parse_gpu("h100") == ("h100", 1) and gpus.parse_gpu("l4:4") == ("l4", 4)
    for name, chip in GPUS.items():
        text = gpus.describe(name)
        assert f"device_memory_size: {int(chip.hbm_bytes)}\n" in text and f'"{name}"' in text
        assert text.count("{") == text.count("}") == 3


def compile_tool(*arguments, tool="tpu"):
    command = [sys.executable, f"tools/compile_for_{tool}.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("topology", "named"),
    [("v5p:4x4", "v5p has 3 sizes"), ("h100:8", "chip must be one of v4, v5e, v5p, v6e")],
)
def test_a_bad_topology_is_one_line_and_exit_code_2(topology, named):
    done = compile_tool("--config=configs/quickstart.py", f"--topology={topology}")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ") and named in done.stderr


@pytest.mark.parametrize(
    ("gpu", "named"),
    [("v100", "one of a100, h100, h200, l4"), ("h100:0", "must be a positive integer")],
)
def test_a_bad_gpu_is_one_line_and_exit_code_2(gpu, named):
    done = compile_tool("--config=configs/quickstart.py", f"--gpu={gpu}", tool="gpu")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ") and named in done.stderr


@pytest.mark.skipif(
    any(map(importlib.util.find_spec, compile_for_gpu.PLUGINS)), reason="a GPU compiler is here"
)
def test_without_a_gpu_compiler_one_line_says_what_to_install():
    done = compile_tool("--config=configs/quickstart.py", tool="gpu")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "dfpo_jax[gpu]" in done.stderr


def test_what_jax_takes_of_a_gpu(monkeypatch):
    for name in compile_for_gpu.FRACTIONS:
        monkeypatch.delenv(name, raising=False)
    assert compile_for_gpu.memory_fraction() == 0.75
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".9")
    assert compile_for_gpu.memory_fraction() == 0.9
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "all")
    with pytest.raises(ValueError, match="XLA_CLIENT_MEM_FRACTION='all'"):
        compile_for_gpu.memory_fraction()


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_a_tpu_compiler_one_line_says_what_to_install():
    done = compile_tool("--config=configs/quickstart.py", "--topology=v5p:4x4x4")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "pip install libtpu" in done.stderr
