"""Tiny random models built by `transformers` in PyTorch, and tokens for them."""

import functools

import numpy as np
import pytest
import transformers

torch = pytest.importorskip("torch")

torch.set_num_threads(1)  # these models are too small for more
VOCAB = 96
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# name -> (classes' prefix, tied, rope, other fields)
CASES = {
    "llama": ("Llama", False, {"rope_theta": 10000.0}, {"rms_norm_eps": 1e-5}),
    "llama_llama3": ("Llama", True, {**LLAMA3, "rope_theta": 500.0}, {}),
    "llama_linear": ("Llama", False, {"rope_type": "linear", "factor": 2.0}, {"head_dim": 16}),
    "llama_yarn": ("Llama", True, {**YARN, "beta_fast": 8.0}, {}),
    # A square matrix is transposed like any other.
    "qwen2": ("Qwen2", True, {"rope_theta": 1e6}, {"intermediate_size": 32}),
    "qwen2_yarn": ("Qwen2", False, {**YARN, "mscale": 0.7, "mscale_all_dim": 1.4}, {}),
    "qwen3": ("Qwen3", True, {"rope_theta": 1e6}, {"head_dim": 16}),
    "qwen3_yarn": (
        "Qwen3",
        False,
        {**YARN, "attention_factor": 1.3, "truncate": False},
        {"head_dim": 32},
    ),
}


@functools.cache
def torch_model(case, dtype="float32"):
    """A model in evaluation mode; every parameter is random, norms' scales around 1."""
    prefix, tied, rope, fields = CASES[case]
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, **rope},
        attn_implementation="eager",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **{"intermediate_size": 48, **fields},
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            x.copy_(torch.randn_like(x) * (0.3 if x.ndim > 1 else 0.1) + 1.0 * ("norm" in name))
    return model.to(getattr(torch, dtype))


def torch_logits(model, tokens, valid):
    """Logits [B, T, V] of left-padded tokens."""
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
    with torch.no_grad():
        return model(
            input_ids=torch.as_tensor(tokens, dtype=torch.long),
            attention_mask=torch.as_tensor(valid),
            position_ids=torch.as_tensor(positions),
        ).logits.numpy()


def torch_greedy(model, tokens, valid, count):
    """The next `count` tokens by greedy decoding [B, count], never stopping early."""
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.as_tensor(tokens, dtype=torch.long),
            attention_mask=torch.as_tensor(valid),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[:, tokens.shape[1] :].numpy()


def padded_tokens(batch=3, length=70, vocab=VOCAB, seed=0):
    """Tokens [B, T] and their validity, left-padded by a different number in each row."""
    tokens = np.random.default_rng(seed).integers(3, vocab, size=(batch, length))
    valid = (np.arange(length)[None] >= 5 * np.arange(batch)[:, None]).astype(np.int64)
    return np.where(valid, tokens, 0).astype(np.int32), valid
