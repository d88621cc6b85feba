import contextlib
import dataclasses
import functools
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from plain_logits import plain_logits
from safetensors.numpy import load_file, save_file

from dfpo_jax.models import decode, weights
from dfpo_jax.models.hf import INDEX, SINGLE, SafetensorsSource, check, load, model_config, save
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.rollout.generate import generate
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.sharding import create_mesh, shardings
from dfpo_jax.tokenizers import character_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch_models import (  # noqa: E402
    CASES,
    VOCAB,
    padded_tokens,
    torch_greedy,
    torch_logits,
    torch_model,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A function from a case to the directory where PyTorch saved it."""

    @functools.cache
    def write(case, dtype="float32"):
        path = tmp_path_factory.mktemp("models") / f"{case}-{dtype}"
        torch_model(case, dtype).save_pretrained(path)
        return path

    return write


@functools.cache
def jit_apply(config):
    return jax.jit(Transformer(config).apply)


def logits_of(config, params, tokens, valid):
    hidden, _ = jit_apply(config)({"params": params}, tokens, valid)
    return np.asarray(plain_logits(params, hidden))


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert jax.tree.structure(first) == jax.tree.structure(second)


# Equal to PyTorch


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_torch(directory, case):
    tokens, valid = padded_tokens()
    expected = torch_logits(torch_model(case), tokens, valid)
    config, params = load(directory(case))
    keep = valid.astype(bool)
    found = logits_of(config, params, tokens, valid)
    assert np.abs(expected).max() > 1.0
    np.testing.assert_allclose(found[keep], expected[keep], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["llama_llama3", "llama_yarn", "qwen2", "qwen3"])
def test_prefill_and_decode_equal_one_pass(directory, case):
    config, params = load(directory(case))
    tokens, valid = padded_tokens(length=40)
    whole = logits_of(config, params, tokens, valid)
    model = Transformer(config)
    held = jax.jit(functools.partial(decode.gather_params, model))(params)
    step = jax.jit(functools.partial(decode.step, config, held))
    _, cache = decode.prefill(model, params, tokens[:, :36], valid[:, :36])
    cache = tiny.widened(config, cache, 4)
    for i in range(36, 40):
        logits, _, cache = step(tokens[:, i], valid[:, i].astype(bool), cache)
        keep = valid[:, i].astype(bool)
        np.testing.assert_allclose(logits[keep], whole[keep, i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["llama_llama3", "llama_yarn", "qwen2", "qwen3"])
def test_greedy_continuations_equal_those_of_torch(directory, case):
    config, params = load(directory(case))
    tokens, valid = padded_tokens(length=20)
    sampling = SamplingConfig(max_new_tokens=24, temperature=0.0)
    found = jax.jit(
        functools.partial(generate, Transformer(config), config=sampling, eos_ids=(), pad_id=0)
    )(params, tokens, valid, jax.random.key(0))
    expected = torch_greedy(torch_model(case), tokens, valid, 24)
    np.testing.assert_array_equal(found.tokens, expected)
    assert len(np.unique(expected)) > 10


# Written and read back


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", ["llama_llama3", "qwen2_yarn", "qwen3_yarn"])
def test_save_gives_back_the_same_bits(directory, tmp_path, case, dtype):
    config, params = load(directory(case, dtype), param_dtype=dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    assert config.dtype == dtype
    save(tmp_path / "out", config, params)
    again, same = load(tmp_path / "out", param_dtype=dtype)
    assert again == config
    assert_same(same, params)
    original, written = (
        load_file(path / SINGLE) for path in (directory(case, dtype), tmp_path / "out")
    )
    assert_same(written, original)


@pytest.mark.parametrize("case", ["llama_yarn", "qwen2_yarn", "qwen3", "qwen3_yarn"])
def test_transformers_loads_what_save_writes(directory, tmp_path, case):
    config, params = load(directory(case))
    tokenizer = character_tokenizer("abc 0123456789")
    tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    save(tmp_path / "out", config, params, tokenizer=tokenizer, max_file_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # as readable as what Python writes
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(4 * x.size for x in jax.tree.leaves(params))
    other, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    tokens, valid = padded_tokens()
    np.testing.assert_array_equal(
        torch_logits(other.eval(), tokens, valid)[valid == 1],
        torch_logits(torch_model(case), tokens, valid)[valid == 1],
    )
    assert other.generation_config.eos_token_id == tokenizer.eos_token_id
    # AutoTokenizer builds Qwen2's own tokenizer for a Qwen2 model, whatever was saved.
    of_file = transformers.PreTrainedTokenizerFast
    reader = of_file if config.qkv_bias else transformers.AutoTokenizer
    back = reader.from_pretrained(tmp_path / "out")
    assert back.encode("ab 10") == tokenizer.encode("ab 10")
    message = [{"role": "user", "content": "ab"}]
    assert back.apply_chat_template(message, tokenize=False) == "ab!"
    again, same = load(tmp_path / "out")  # through the index
    assert_same(same, params)
    assert again == config


def test_save_refuses_a_directory_in_use_and_leaves_nothing_behind(directory, tmp_path):
    config, params = load(directory("llama"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes").write_text("mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="used exists and is not an empty directory"):
        save(tmp_path / "used", config, params)
    with pytest.raises(ValueError, match="notes exists and is not an empty directory"):
        save(tmp_path / "used" / "notes", config, params)
    save(tmp_path / "empty", config, params)
    wide = dataclasses.replace(config, d_ff=47)
    with pytest.raises(ValueError, match=r"kernel has shape \(3, .*48.*\), not \(3, .*47.*\)"):
        save(tmp_path / "new", wide, params)
    with pytest.raises(ValueError, match="disagree about head"):
        save(tmp_path / "new", dataclasses.replace(config, tie_embeddings=True), params)
    mixed = {**params, "embedding": params["embedding"].astype(jnp.bfloat16)}
    with pytest.raises(ValueError, match="params have types bfloat16, float32"):
        save(tmp_path / "new", config, mixed)
    tokenizer = character_tokenizer("".join(chr(200 + i) for i in range(VOCAB)))
    with pytest.raises(ValueError, match=f"tokenizer has {VOCAB + 4} tokens; the model {VOCAB}"):
        save(tmp_path / "new", config, params, tokenizer=tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "used"]
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["notes"]


def test_a_failed_save_leaves_nothing_behind(directory, tmp_path, monkeypatch):
    config, params = load(directory("llama"))
    monkeypatch.setattr("dfpo_jax.models.hf.save_file", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(tmp_path / "out", config, params)
    assert not list(tmp_path.iterdir())


# Onto a mesh


class Counting(SafetensorsSource):
    """Counts what is read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.parts = []

    def read(self, name, index):
        part = super().read(name, index)
        self.parts.append((name, part.nbytes))
        return part


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen3_yarn"])
def test_a_mesh_holds_the_same_and_each_byte_is_read_once(directory, case):
    config, whole = load(directory(case))
    mesh = create_mesh(2, 2, 2)
    with contextlib.ExitStack() as stack:
        source = Counting(directory(case), stack)
        params = weights.load_params(source, config, mesh)
    assert_same(params, whole)
    expected = nn.unbox(shardings(weights.abstract_params(config), mesh))
    for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert leaf.sharding == place
    sizes = {name: x.nbytes for name, x in load_file(directory(case) / SINGLE).items()}
    assert sum(count for _, count in source.parts) == sum(sizes.values())
    for name, count in source.parts:  # matrices come in four parts, fsdp x tensor
        assert count * (4 if name.endswith("proj.weight") else 1) <= sizes[name], name
    tokens, valid = padded_tokens()
    np.testing.assert_allclose(
        logits_of(config, params, tokens, valid)[valid == 1],
        logits_of(config, whole, tokens, valid)[valid == 1],
        rtol=1e-4,
        atol=1e-4,
    )


def test_sharded_parameters_are_saved_whole(directory, tmp_path):
    config, params = load(directory("qwen3_yarn"), mesh=create_mesh(2, 2, 2))
    save(tmp_path / "out", config, params)
    original = load_file(directory("qwen3_yarn") / SINGLE)
    assert_same(load_file(tmp_path / "out" / SINGLE), original)


def test_rules_may_split_any_axis(directory):
    config, whole = load(directory("qwen2"))
    rules = {**weights.LOGICAL_RULES, "head_dim": "data", "layers": None, "embed": None}
    _, params = load(directory("qwen2"), mesh=create_mesh(2, 2, 2), rules=rules)
    kernel = params["layers"]["attention"]["query"]["kernel"]
    assert tuple(kernel.sharding.spec) == (None, None, "tensor", "data")
    assert_same(params, whole)
    rules = {**weights.LOGICAL_RULES, "layers": "data"}
    _, params = load(directory("qwen2"), mesh=create_mesh(3, 1, 2), rules=rules)
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    assert tuple(kernel.sharding.spec) == ("data", "fsdp", "tensor")
    assert_same(params, whole)


# Refusals


@pytest.fixture
def broken(directory, tmp_path):
    """A function that copies a case and writes it back with its tensors changed."""

    def write(case, change, dtype="float32"):
        path = tmp_path / "broken"
        shutil.copytree(directory(case, dtype), path)
        tensors = load_file(path / SINGLE)
        change(tensors)
        save_file(tensors, path / SINGLE)
        return path

    return write


def test_unknown_missing_and_misshapen_tensors_are_named(broken, tmp_path):
    norm, kernel = "model.layers.1.input_layernorm.weight", "model.layers.2.mlp.up_proj.weight"

    def swap(x):
        x[kernel] = np.ascontiguousarray(x[kernel].T)

    def count(x):
        x[kernel] = x[kernel].astype(np.int8)

    one = np.zeros((2,), np.float32)
    for change, message in (
        (lambda x: x.pop(norm), f"tensors {norm} are missing"),
        (lambda x: x.update(surprise=one), "tensors surprise of the checkpoint have no place"),
        (lambda x: x.update({norm + "_": one}), f"tensors {norm}_ of the checkpoint have no"),
        (
            lambda x: x.update({"model.layers.3.mlp.up_proj.weight": one}),
            "tensors model.layers.3.mlp.up_proj.weight of the checkpoint have no place",
        ),
        (swap, rf"tensor {kernel} has shape \(32, 48\); the configuration asks for \(48, 32\)"),
        (count, f"tensor {kernel} has type I8; it must be one of F32, BF16, F16"),
    ):
        path = broken("llama", change)
        with pytest.raises(ValueError, match=message):
            load(path)
        if change is not count:  # that one is found when it is read
            with pytest.raises(ValueError, match=message):
                check(path)
        shutil.rmtree(tmp_path / "broken")


def test_rotary_buffers_are_ignored(broken, directory):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    path = broken("llama", lambda x: x.update({name: np.ones((4,), np.float32)}))
    assert_same(load(path)[1], load(directory("llama"))[1])


@pytest.mark.parametrize("offset", [0.0, 1e-3])
def test_a_head_beside_a_tied_embedding_must_equal_it(broken, directory, offset):
    def add(tensors):
        head = tensors["model.embed_tokens.weight"].copy()
        head[-1, -1] += offset
        tensors["lm_head.weight"] = head

    path = broken("qwen2", add)
    if offset:
        with pytest.raises(ValueError, match="tensor lm_head.weight differs from model.embed"):
            load(path)
        assert "head" in load(path, tie_embeddings=False)[1]
    else:
        assert_same(load(path)[1], load(directory("qwen2"))[1])


def test_files_that_disagree_with_their_index(directory, tmp_path):
    config, params = load(directory("llama"))
    save(tmp_path / "out", config, params, max_file_bytes=40_000)
    index = tmp_path / "out" / INDEX
    text = index.read_text()
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    name = "model.layers.2.mlp.up_proj.weight"
    content = json.loads(text)
    last = content["weight_map"][name]
    assert last != files[0]

    def check(message, **changes):
        index.write_text(json.dumps({"weight_map": {**content["weight_map"], **changes}}))
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "out")
        index.write_text(text)

    check(f"tensor surprise is in no file; {INDEX} says {files[0]}", surprise=files[0])
    check(f"tensor {name} is in {last}; .* says {files[0]}", **{name: files[0]})
    check("has no absent.safetensors, which", surprise="absent.safetensors")
    content["weight_map"].pop(name)
    check(f"tensor {name} is in {last}; .* says no file")
    twice = load_file(tmp_path / "out" / files[0]) | {name: np.ones((32,), np.float32)}
    save_file(twice, tmp_path / "out" / files[0])
    with pytest.raises(ValueError, match=f"tensor {name} is in both {files[0]} and {last}"):
        load(tmp_path / "out")


def test_directories_without_a_model(directory, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="has no config.json"):
        load(tmp_path)
    shutil.copy(directory("llama") / "config.json", tmp_path)
    with pytest.raises(ValueError, match=f"has neither {SINGLE} nor {INDEX}"):
        load(tmp_path)
    with pytest.raises(ValueError, match="neither a directory nor the id of a model"):
        load(tmp_path / "absent")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="'some/model' is not a directory, .* cannot be reached"
    ) as e:
        load("some/model")
    assert "\n" not in str(e.value)


def test_an_id_is_downloaded(directory, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append("*.safetensors" in allow_patterns)
        return directory(name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model_config("llama")
    assert asked == [False]  # sizes can be had without the weights
    assert_same(load("llama")[1], load(directory("llama"))[1])
    assert asked[-1]
