"""GGUF files with a tokenizer and no model, written by the package gguf."""

import pytest

gguf = pytest.importorskip("gguf")

CONTROL, USER_DEFINED, BYTE = (
    gguf.TokenType.CONTROL,
    gguf.TokenType.USER_DEFINED,
    gguf.TokenType.BYTE,
)


def write_tokenizer(path, tokens, *, kind="gpt2", pre="", merges=(), scores=(), types=None, **more):
    """Writes the file; `types` maps tokens to their type, `more` are keys of tokenizer.ggml."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"block_count": 1, "context_length": 8, "embedding_length": 4}.items():
        writer.add_uint32(f"llama.{key}", value)
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        writer.add_uint32(f"llama.{key}", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("tokenizer.ggml.model", kind)
    if pre:
        writer.add_string("tokenizer.ggml.pre", pre)
    writer.add_token_list(tokens)
    types = types or {}
    writer.add_token_types([types.get(token, gguf.TokenType.NORMAL) for token in tokens])
    if merges:
        writer.add_token_merges(list(merges))
    if scores:
        writer.add_token_scores(list(scores))
    for key, value in more.items():
        name = "tokenizer.chat_template" if key == "chat_template" else f"tokenizer.ggml.{key}"
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
        add(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
