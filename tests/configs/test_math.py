"""The configurations of configs/ at the scale of accelerators: they parse, divide and add up."""

import importlib.util
import pathlib

import pytest

from dfpo_jax.models.config import PRESETS
from dfpo_jax.sharding import BATCH_AXES
from dfpo_jax.training.config import parse_config

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
# Name -> (preset, chips).
MATH = {
    "qwen3_8b_math_v5p64": ("qwen3_8b", 64),
    "qwen3_8b_math_v5e64": ("qwen3_8b", 64),
    "qwen3_1p7b_math_v6e8": ("qwen3_1p7b", 8),
    "qwen3_0p6b_math_1gpu": ("qwen3_0p6b", 1),
}
SIZES = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")


def load(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", MATH)
def test_it_parses_to_the_run_it_names(name):
    preset, chips = MATH[name]
    config = parse_config(load(name).get_config())
    assert config.algorithm == "dfpo"
    task = config.task.resolved()
    assert (task.name, task.dataset) == ("reasoning_gym", "gsm_symbolic")
    assert config.rewards.flip.false_positive == config.rewards.flip.false_negative == 0.2
    for field in SIZES:
        assert getattr(config.model, field) == getattr(PRESETS[preset], field)
    assert config.weights.source.lower().replace(".", "p") == preset.replace(
        "qwen3_", "qwen/qwen3-"
    )
    assert config.tokenizer.name == "weights" and config.task.chat.enabled
    assert config.model.dtype == "bfloat16" and config.model.param_dtype == "float32"
    mesh = {axis: getattr(config.mesh, axis) for axis in ("data", "fsdp", "tensor")}
    assert mesh["data"] * mesh["fsdp"] * mesh["tensor"] == chips
    assert config.model.num_kv_heads % mesh["tensor"] == 0
    assert config.model.d_model % mesh["fsdp"] == config.model.vocab_size % mesh["tensor"] == 0
    train, parts = config.train, mesh[BATCH_AXES[0]] * mesh[BATCH_AXES[1]]
    rows = train.prompts * train.samples // (train.minibatches * train.microbatches)
    assert rows % parts == train.prompts % parts == config.warm_start.batch_size % parts == 0
    evaluation = config.evaluation
    assert evaluation.critic_prompts * evaluation.critic_samples % parts == 0


@pytest.mark.parametrize("name", MATH)
def test_its_prompts_fit_their_slots(name):
    """In characters, of which a token of these models holds at least one."""
    config = parse_config(load(name).get_config())
    for split in ("train", "held_out"):
        longest = max(len(item.prompt) for item in config.task.build(split).items(50))
        assert longest < 3 * config.train.prompt_length


@pytest.mark.parametrize("name", MATH)
def test_an_argument_is_an_error(name):
    with pytest.raises(ValueError, match=f"{name}.py:fast"):
        load(name).get_config("fast")
