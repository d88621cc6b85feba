"""The benchmarks run, at small sizes, and the memory of the loss keeps its bound at full size."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from _benchmark import configuration, language_model, packing, partial_rollouts, presets, verifiers
from _benchmark.rollouts import made_up
from tiny_run import tiny

from dfpo_jax.algorithms import PRESETS
from dfpo_jax.rollout.partial import Partial
from dfpo_jax.tasks import Item
from dfpo_jax.tasks.verifiers import Verifier, VerifierConfig
from dfpo_jax.training.config import parse_config
from dfpo_jax.types import rollout_of


@pytest.fixture
def small(monkeypatch):
    sizes = {"vocab_size": 512, "d_model": 36, "head_dim": 4, "num_layers": 2, "d_ff": 64}
    config = dataclasses.replace(language_model.SMOLLM2, **sizes)
    monkeypatch.setattr(language_model, "SMOLLM2", config)


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("generation", "torch/dfpo_jax"),
        ("ragged", "to_limit/ragged_16_slots"),
        ("log_probs", "dfpo_jax/torch"),
    ],
)
def test_language_model_benchmarks(small, name, figure):
    pytest.importorskip("torch")
    found = language_model.BENCHMARKS[name](1)
    assert found[figure] > 0
    if name == "ragged":
        assert 10 < found["mean_length"] < 22  # of 64; geometric with mean 16, cut at 64


@pytest.mark.slow
def test_long_cache_benchmark(small):
    found = language_model.long_cache(1)
    assert 60 < found["mean_length"] < 180  # of 480; geometric with mean 120, cut at 480
    assert found["all_columns/filled_columns"] > 0


@pytest.mark.slow
def test_packing_benchmark(small, monkeypatch):
    model = dataclasses.replace(language_model.SMOLLM2, remat="none")  # so that pieces show
    sizes = {"SMOLLM2": model, "PROMPT": 8, "RESPONSE": 32}
    for name, value in sizes.items():
        monkeypatch.setattr(packing, name, value)
    found = packing.packing(1)
    assert 0.2 < found["ragged_tokens/slots"] < 0.6  # (8 + 8) / 40, of 16 draws
    assert found["ragged_packed/padded"] > 0 and 0 < found["bytes_packed/padded"] < 1
    kept = packing.remat(1)
    assert 0 < kept["bytes_full/none"] < kept["bytes_dots/none"] < 1
    monkeypatch.setattr(packing, "LENGTHS", (8, 24))
    found = packing.lengths(1)  # means of these shares of all tokens, 16 and 32 of 48, are 1
    assert found["per_token_8/mean"] / 3 + found["per_token_24/mean"] * 2 / 3 == pytest.approx(1)


@pytest.mark.slow
def test_partial_rollouts_benchmark(small, monkeypatch):
    sizes = partial_rollouts.Sizes(4, 4, 64, 8, Partial(8, 4))
    monkeypatch.setattr(partial_rollouts, "SIZES", sizes)
    found = partial_rollouts.partial(1)
    assert 6 < found["mean_length_whole"] < 10 and 6 < found["mean_length_partial"] < 10
    assert found["partial/whole"] > 0 and found["packed/whole"] > 0


def test_every_verifier_is_timed_on_right_and_wrong_responses(monkeypatch):
    monkeypatch.setattr(verifiers, "_ROWS", dict.fromkeys(verifiers.CASES, 16))
    rates = verifiers.verifiers(1)
    assert {"number_per_second", "choice_per_second"} <= set(rates)
    assert all(rate > 0.0 for rate in rates.values())
    for name, (extract, response, answer) in verifiers.CASES.items():
        if name != "math_verify":
            verifier = Verifier(VerifierConfig(name, extract), "test")
            (verdict,) = verifier.judge([Item("?", answer.format(7, 7))], [response.format(7, 7)])
            assert verdict.reward == 1.0


@pytest.mark.slow
def test_the_programs_of_a_configuration_are_timed():
    config = tiny()
    config.plan.name, config.sampling.slots = "hybrid", 2
    programs = configuration.programs_of(parse_config(config))
    found = configuration.configuration(programs, 1)
    responses = config.train.prompts * programs.round_samples
    seconds = responses * 3 / found["sampled_tokens_per_second"]
    assert seconds == pytest.approx(found["sample"]) and found["update"] > 0
    assert "flops_utilisation" not in found  # nobody says what a CPU could do


def test_devices_that_only_sample_are_refused():
    config = tiny(behaviour_lag=1)
    config.mesh.rollout = 2
    with pytest.raises(ValueError, match="config.mesh.rollout is 2; here it must be 0"):
        configuration.programs_of(parse_config(config))


def test_decoding_reads_weights_and_filled_cache_in_every_step():
    config = tiny()
    config.sampling.slots, config.sampling.cache_dtype = 4, "bfloat16"
    config.model.update(tie_embeddings=False, dtype="float32")
    # 8 responses of 3 tokens in 4 slots: 6 steps. The table of embeddings, 24 x 16, is not read; on
    # average 6 + 1.5 columns of 2 x 8 numbers are.
    found = configuration.decoding_bytes(parse_config(config), 1000)
    assert found == 6 * ((1000 - 24 * 16) * 4 + 4 * 7.5 * 2 * 8 * 2)


def test_the_loss_in_pieces_takes_a_third_of_the_memory():
    assert language_model.loss_memory(0)["chunked/whole"] <= 0.35


@pytest.fixture
def small_policy(monkeypatch):
    sizes = {"vocab_size": 64, "d_model": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2}
    config = dataclasses.replace(presets.POLICY, **sizes, head_dim=8, d_ff=32)
    monkeypatch.setattr(presets, "POLICY", config)


@pytest.mark.slow
def test_a_preset_and_ppo_train_on_equally_many_rows(small_policy):
    sizes = presets.Sizes(prompts=4, samples=2, prompt_length=2, response_length=3)
    configs = presets.configurations(["reinforce_ada"], sizes)
    (row,) = presets.compare(["reinforce_ada"], configs, 1)
    assert (row["preset"], row["rows"], set(row["parameters"])) == ("reinforce_ada", 8, {"policy"})
    assert all(low > 0.0 for low, *_ in row["ratio"].values())
    line = presets.line(row)
    assert line.count("|") == presets.HEADER.partition("\n")[0].count("|")
    # At least a round of 8 responses to each of 4 prompts, at most four rounds.
    assert line.startswith("| reinforce_ada | ") and line.endswith("| policy | 32 to 128 for 8 |")


def test_a_made_up_rollout_has_what_its_shapes_have():
    shapes = functools.partial(rollout_of, jax.ShapeDtypeStruct, 6, 4, 5)
    full = shapes(samples=3, gives={"pool", "expert"}, top=2)
    rollout = made_up(full, 9)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), rollout) == jax.tree.map(
        lambda x: (x.shape, x.dtype), full
    )
    assert rollout.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert rollout.rewards.tolist() == [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    for tokens in (rollout.prompt_tokens, rollout.tokens, rollout.expert.tokens):
        assert 0 <= tokens.min() < tokens.max() < 9
    for masks in (rollout.prompt_mask, rollout.mask, rollout.expert.mask):
        assert masks.all()
    np.testing.assert_allclose(np.exp(rollout.log_probs), 1 / 9, rtol=1e-6)
    np.testing.assert_allclose(np.exp(rollout.top_log_probs), 1 / 9, rtol=1e-6)
    plain = made_up(shapes(), 9)
    assert plain.baseline is plain.expert is plain.top_tokens is plain.top_log_probs is None
    assert plain.groups.tolist() == list(range(6))


class Scripted:
    """A learner whose seconds are written down; the first one that is made is PPO's.

    A pair of steps is ten times as slow as the one before; in a pair, the preset is 2, 3 and 4
    times as slow as PPO.
    """

    order = []
    parameters = {}
    first = dict.fromkeys(presets.PARTS, 1000.0)

    def __init__(self, config):
        self.factors = iter((2, 3, 4) if config.algorithm == "grpo" else (1, 1, 1))
        self.name = config.algorithm

    def step(self):
        self.order.append(self.name)
        pair = (len(self.order) + 1) // 2
        return dict.fromkeys(presets.PARTS, next(self.factors) * 10.0**pair)


def test_ratios_are_those_of_steps_that_follow_each_other(monkeypatch):
    monkeypatch.setattr(presets, "_Timed", Scripted)
    configs = presets.configurations(["grpo"], presets.Sizes(prompts=8))
    (row,) = presets.compare(["grpo"], configs, 3)
    assert Scripted.order == ["ppo", "grpo", "grpo", "ppo", "ppo", "grpo"]
    for part in presets.PARTS:
        assert row["ratio"][part] == [2.5, 3.0, 3.5]
        assert (row["seconds"][part], row["ppo_seconds"][part]) == (300.0, 100.0)
    assert (row["compile_seconds"], row["ppo_compile_seconds"]) == (700.0, 900.0)


def test_all_presets_take_the_same_sizes_and_wrong_ones_are_refused():
    names = presets.chosen(["all"])
    configs = presets.configurations(names, presets.Sizes())
    assert list(configs) == [*dict.fromkeys(["ppo", *names])] and set(names) == set(PRESETS)
    drawn = {
        name: presets.rows_drawn(config.plan.build(4), 4, 4) for name, config in configs.items()
    }
    assert drawn.pop("dapo") == (16, 160)  # ten rounds of all prompts
    assert drawn.pop("reinforce_ada") == (32, 128)
    assert set(drawn.values()) == {(16, 16)}
    with pytest.raises(ValueError, match="^--presets=grop: there are all, dfpo, ppo, "):
        presets.chosen(["grop"])
    with pytest.raises(ValueError, match="^--presets=grpo: .*samples"):
        presets.configurations(["grpo"], presets.Sizes(samples=1, prompts=8))
    with pytest.raises(ValueError, match="^--presets=ppo: .*mesh data . fsdp, 8, must divide it"):
        presets.configurations(["grpo"], presets.Sizes(prompts=3))
