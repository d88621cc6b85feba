"""Runs that start from published weights, and their export."""

import json
import shutil

import jax
import numpy as np
import pytest
from export import export
from generate import policy_of, responses
from plain_logits import plain_logits
from pretrained_models import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from dfpo_jax.models import LoraConfig, hf, lora
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.training.config import default_config, parse_config
from dfpo_jax.training.loop import train
from dfpo_jax.training.metrics import read_metrics
from dfpo_jax.training.restore import load_run
from dfpo_jax.training.run import build_run
from dfpo_jax.training.warm_start import first_policy
from dfpo_jax.training.workdir import open_workdir


def tiny(source, **train_settings):
    config = default_config()
    config.weights.source = str(source)
    config.tokenizer.name = "weights"
    config.model.max_positions = 64
    config.task.parameters = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    config.task.prompt = "{metadata[expression]}="
    config.task.chat.enabled = True
    config.out_of_domain = config.task.copy_and_resolve_references()
    config.out_of_domain.chat.system = "Add."
    config.sampling.max_new_tokens = 3
    config.warm_start.batch_size = 8
    config.train.update(iterations=1, prompts=4, samples=2, prompt_length=32, **train_settings)
    config.evaluation.update(prompts=4, critic_prompts=2, critic_samples=2)
    config.log.tensorboard = False
    config.mesh.update(data=1, fsdp=1)
    return config


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    directory = tmp_path_factory.mktemp("published") / "model"
    return directory, *save_tiny(directory)


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_model_is_the_weights_own_but_for_what_the_run_decides(published):
    directory, config, params = published
    source = tiny(directory)
    source.model.update(param_dtype="bfloat16", remat="full", d_model=999, rope_theta=3.0)
    run = build_run(parse_config(source))
    model = run.config.model
    assert (model.d_model, model.rope_theta, model.vocab_size) == (16, 500.0, 96)
    assert (model.param_dtype, model.remat, model.max_positions) == ("bfloat16", "full", 64)
    policy = first_policy(run)
    expected = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    assert_equal(policy, expected)


def test_the_policy_and_the_reference_start_from_the_weights_on_the_mesh(published):
    directory, _, params = published
    config = tiny(directory)
    config.objective.kl.coefficient = 0.1
    config.mesh.update(data=2, fsdp=2)
    run = build_run(parse_config(config))
    policy = first_policy(run)
    placed = jax.tree.map(lambda x: x.sharding, policy)
    assert placed == run.learner.state_shardings.params["policy"]
    state = run.learner.start(run.key, policy)
    assert_equal(state.params["policy"], params)
    assert_equal(state.reference, params)


def test_a_warm_start_goes_on_from_the_weights(published):
    directory, _, params = published
    config = tiny(directory)
    config.warm_start.update(steps=1)
    config.warm_start.optimizer.learning_rate = 0.0
    assert_equal(first_policy(build_run(parse_config(config))), params)


def test_a_directory_without_weights_is_refused_before_anything_begins(published, tmp_path):
    parts = shutil.copytree(published[0], tmp_path / "parts")
    (parts / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has neither model.safetensors nor"):
        build_run(parse_config(tiny(parts)))


def test_responses_end_at_any_published_eos(published):
    run = build_run(parse_config(tiny(published[0])))
    assert run.sampler.eos_ids == (2, 7)
    assert run.evaluations["in_domain"].sampler.eos_ids == (2, 7)


@pytest.mark.slow
def test_a_run_exports_what_transformers_loads_and_what_can_be_trained_again(
    published, tmp_path, monkeypatch
):
    torch = pytest.importorskip("torch")
    workdir, exported = tmp_path / "run", tmp_path / "exported"
    config = tiny(published[0])
    (tmp_path / "picky.py").write_text(
        "def judge(response, answer, payload):\n    return 1.0 / (response == answer)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    # Raises on every response but the reference answer: the run goes on where that is allowed.
    config.task.verifier.update(name="picky:judge", on_failure=0.5, most_failures=1.0)
    run = build_run(parse_config(config))
    open_workdir(workdir, run)
    train(run, workdir)
    row = read_metrics(workdir)[1]
    assert (row["verifier/errors"], row["verifier/timeouts"]) == (8.0, 0.0)
    assert row["rollout/clean_reward"] == 0.5
    assert export(str(workdir), str(exported)) == 1
    _, state = load_run(workdir)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 + 3="}], add_generation_prompt=True, tokenize=False
    )
    ids = np.array([tokenizer.encode(ids, add_special_tokens=False)])
    assert ids[0, 0] == 1 and ids.shape[1] > 10
    settings = GenerationConfig.from_pretrained(exported)
    assert settings.eos_token_id == [2, 7] and settings.temperature == 0.6
    theirs = AutoModelForCausalLM.from_pretrained(exported)(torch.as_tensor(ids)).logits
    model = Transformer(run.config.model)
    variables = {"params": state.params["policy"]}
    hidden, _ = model.apply(variables, ids, np.ones_like(ids))
    ours = plain_logits(variables["params"], hidden)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-4)
    again = build_run(parse_config(tiny(exported)))
    assert_equal(first_policy(again), state.params["policy"])
    half = tmp_path / "half"
    export(str(workdir), str(half), dtype="bfloat16")
    assert hf.load(half)[0].dtype == "bfloat16"


@pytest.mark.slow
def test_low_rank_updates_of_published_weights_are_trained_and_exported(published, tmp_path):
    torch = pytest.importorskip("torch")
    _, _, params = published
    workdir, exported = tmp_path / "run", tmp_path / "exported"
    config = tiny(published[0])
    config.model.lora.update(rank=2, alpha=8.0)
    config.warm_start.update(steps=2)
    config.warm_start.optimizer.learning_rate = 0.1
    run = build_run(parse_config(config))
    assert run.config.model.lora == LoraConfig(2, 8.0) and run.config.model.d_model == 16
    open_workdir(workdir, run)
    train(run, workdir)
    assert export(str(workdir), str(exported)) == 1
    run, state = load_run(workdir)
    policy = state.params["policy"]
    _, frozen = lora.split(policy)
    assert_equal(frozen, params)
    ids = np.arange(3, 43).reshape(2, 20)
    theirs = AutoModelForCausalLM.from_pretrained(exported)(torch.as_tensor(ids)).logits

    def logits(params, config):
        model = Transformer(config)
        hidden, _ = model.apply({"params": params}, ids, np.ones_like(ids))
        return plain_logits(params, hidden)

    ours = logits(policy, run.config.model)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-4)
    assert np.abs(ours - logits(params, run.config.model.without_lora())).max() > 0.01
    # The same sampler reads the run's state and the weights it started from.
    items, greedy = run.evaluations["in_domain"].items, SamplingConfig(3, temperature=0.0)
    assert_equal(policy_of(run, str(workdir), "weights"), params)
    for name in ("weights", "newest"):
        found = responses(run, policy_of(run, str(workdir), name), items, greedy, 0)
        assert len(found) == len(items)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.weights.update(source="/no/such place"), "neither a directory nor the id"),
        (lambda c: c.weights.update(source="none.gguf"), "none.gguf is no file"),
        (lambda c: c.model.update(max_positions=4096), "4096; the model .* declares 128"),
        (lambda c: c.weights.update(overrides={"width": 3}), "weights.overrides.width is not a"),
        (lambda c: c.weights.update(source=""), "name is 'weights'; weights.source is empty"),
        (lambda c: c.tokenizer.update(name="character"), "no chat template"),
        (lambda c: c.train.update(prompt_length=5), "prompt_length is 5"),
    ],
)
def test_what_does_not_fit_is_refused(published, change, message):
    config = tiny(published[0])
    change(config)
    with pytest.raises(ValueError, match=message):
        build_run(parse_config(config))


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    save_tiny(tmp_path / "large")
    save_tiny(tmp_path / "small", vocab_size=96)
    config = tiny(tmp_path / "small")
    config.weights.overrides = {"vocab_size": 50}
    with pytest.raises(ValueError, match="vocab_size is 50; the tokenizer has"):
        build_run(parse_config(config))


def test_overlong_prompts_are_refused_passed_over_or_cut(published, tmp_path):
    rows = [{"question": "+" * n, "answer": "1"} for n in range(1, 33)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    config = tiny(published[0])
    config.task.update(name="jsonl", dataset=str(path), prompt="{question}", held_out_percent=25)
    config.task.parameters = {}
    with pytest.raises(ValueError, match="tokens; prompt_length is 32"):
        build_run(parse_config(config))
    config.task.overlong = "skip"
    run = build_run(parse_config(config))
    lengths = [len(run.sampler.encode(item)) for item in run.train_task.items(32)]
    assert max(lengths) <= 32 and run.train_task.passed_over > 5
    held_out = run.evaluations["in_domain"]
    assert max(len(held_out.sampler.encode(item)) for item in held_out.items) <= 32
    config.task.overlong = "truncate"
    run = build_run(parse_config(config))
    assert run.train_task.passed_over == 0
    tokens, mask = run.sampler.prompts(run.train_task.items(32))
    assert tokens.shape[1] == 32 and mask.sum(axis=1).max() == 32
    assert run.evaluations["in_domain"].sampler.prompt_length == 32
