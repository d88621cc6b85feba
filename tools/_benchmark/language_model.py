"""Generation, log-probabilities and their memory at the sizes of published models.

Weights are random, which does not change timings. The comparison is with PyTorch: the same
architecture from `transformers`, in the same type, on the same platform, with as many threads.
"""

import functools
import os
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from _benchmark.timing import alternate

from dfpo_jax.algorithms.trunk import hidden_states, response_states, token_statistics
from dfpo_jax.models import decode
from dfpo_jax.models.config import PRESETS, TransformerConfig
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.rollout.generate import generate
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.training.update import init_policy

SMOLLM2 = TransformerConfig(49152, 576, 30, 9, 3, 64, 1536, norm_eps=1e-5)
PROMPT, RESPONSE = 32, 64


def _dtype() -> str:
    return "bfloat16" if jax.default_backend() == "gpu" else "float32"


def smollm2(**options) -> tuple[Transformer, dict]:
    """A decoder with SmolLM2-135M's sizes and random parameters."""
    model = Transformer(replace(SMOLLM2, dtype=_dtype(), param_dtype=_dtype(), **options))
    return model, nn.unbox(jax.jit(functools.partial(init_policy, model))(jax.random.key(0)))


def _torch_smollm2():
    """The same model in PyTorch, or None if that is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = transformers.LlamaConfig(
        vocab_size=SMOLLM2.vocab_size,
        hidden_size=SMOLLM2.d_model,
        num_hidden_layers=SMOLLM2.num_layers,
        num_attention_heads=SMOLLM2.num_heads,
        num_key_value_heads=SMOLLM2.num_kv_heads,
        intermediate_size=SMOLLM2.d_ff,
        tie_word_embeddings=True,
    )
    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, _dtype()))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return torch, model.to("cuda" if on_gpu else "cpu")


def _tokens(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, SMOLLM2.vocab_size, (rows, length), np.int32)


def _generator(model, params, prompts, *, eos_ids=(), num_samples=1, length=RESPONSE, **options):
    call = functools.partial(
        generate,
        model,
        config=SamplingConfig(max_new_tokens=length, **options),
        eos_ids=eos_ids,
        pad_id=0,
        num_samples=num_samples,
    )
    inputs = params, prompts, np.ones_like(prompts), jax.random.key(1)
    return functools.partial(jax.jit(call), *inputs)


def generation(repeats: int) -> dict:
    """64 new tokens for 16 prompts of 32, sampled from the whole vocabulary, against PyTorch."""
    rows, prompts = 16, _tokens(16, PROMPT)
    programs = {"dfpo_jax": _generator(*smollm2(), prompts)}
    if found := _torch_smollm2():
        torch, model = found
        inputs = torch.tensor(prompts, dtype=torch.long, device=model.device)

        @torch.no_grad()
        def torch_generate():
            sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
            limits = {"max_new_tokens": RESPONSE, "min_new_tokens": RESPONSE}
            everything = torch.ones_like(inputs)
            model.generate(inputs, attention_mask=everything, **sampling, **limits).cpu()

        programs["torch"] = torch_generate
    times = alternate(programs, repeats)
    rates = {f"tokens/s_{name}": rows * RESPONSE / x for name, x in times.items()}
    ratio = {"torch/dfpo_jax": times["torch"] / times["dfpo_jax"]} if "torch" in times else {}
    return {**times, **rates, **ratio}


def ragged(repeats: int) -> dict:
    """64 responses with geometric lengths, on average a quarter of the limit, in 16 slots.

    One in 16 tokens of the random model ends a response. The comparison decodes all responses to
    the limit, in one batch of 64 or in 16 slots, whichever is faster.
    """
    model, params = smollm2()
    prompts = _tokens(16, PROMPT)
    build = functools.partial(_generator, model, params, prompts, num_samples=4)
    ends = tuple(range(SMOLLM2.vocab_size // 16))
    programs = {
        "to_limit": build(),
        "to_limit_16_slots": build(slots=16),
        "ragged": build(eos_ids=ends),
        "ragged_16_slots": build(eos_ids=ends, slots=16),
    }
    length = float(programs["ragged"]().mask.sum(axis=1).mean())
    times = alternate(programs, repeats)
    best = min(times["to_limit"], times["to_limit_16_slots"])
    ratio = best / times["ragged_16_slots"]
    return {"mean_length": length, **times, "to_limit/ragged_16_slots": ratio}


def long_cache(repeats: int) -> dict:
    """16 prompts of 32 tokens, at most 480 new ones; geometric lengths, on average a quarter.

    With attention to all 512 columns of the cache, and to the chunks that a row has filled; on a
    GPU both read all.
    """
    model, params = smollm2()
    limit = 512 - PROMPT
    ends = tuple(range(4 * SMOLLM2.vocab_size // limit))
    build = functools.partial(_generator, model, params, _tokens(16, PROMPT), length=limit)
    programs, chunk = {}, decode.CHUNK
    for name, columns in (("all_columns", 512), ("filled_columns", chunk)):
        programs[name] = build(eos_ids=ends)
        decode.CHUNK = columns
        length = float(programs[name]().mask.sum(axis=1).mean())  # compiles
    decode.CHUNK = chunk
    times = alternate(programs, repeats)
    ratio = times["all_columns"] / times["filled_columns"]
    return {"mean_length": length, **times, "all_columns/filled_columns": ratio}


def log_probs(repeats: int) -> dict:
    """Log-probabilities of 4 x 256 tokens and their gradient, against PyTorch."""
    model, params = smollm2(remat="dots")
    rows, length = 4, 256
    tokens = _tokens(rows, length + 1)

    def loss(params, tokens):
        hidden = hidden_states(model, params, tokens, jnp.ones_like(tokens))
        states = response_states(hidden, length)
        found, _ = token_statistics(model, params, states, tokens[:, 1:], 1.0)
        return -jnp.mean(found)

    programs = {"dfpo_jax": functools.partial(jax.jit(jax.value_and_grad(loss)), params, tokens)}
    if found := _torch_smollm2():
        torch, other = found
        inputs = torch.tensor(tokens, dtype=torch.long, device=other.device)

        def torch_gradient():
            other.zero_grad(set_to_none=True)
            logits = other(inputs, use_cache=False).logits[:, :-1].float()
            found = torch.log_softmax(logits, -1).gather(-1, inputs[:, 1:, None])
            value = -found.mean()
            value.backward()
            value.item()

        programs["torch"] = torch_gradient
    times = alternate(programs, repeats)
    ratio = {"dfpo_jax/torch": times["dfpo_jax"] / times["torch"]} if "torch" in times else {}
    return {"parameters": sum(x.size for x in jax.tree.leaves(params)), **times, **ratio}


def loss_memory(repeats: int) -> dict:
    """Temporary memory of the policy's log-probabilities and gradient at a vocabulary of 151,936.

    For 4 x 1,024 tokens and only the output projection of Qwen3-0.6B, with all logits at once and
    with pieces of 64 time steps (`policy.logits_chunk`). Compiled, not run.
    """
    del repeats
    config = PRESETS["qwen3_0p6b"]
    model = Transformer(config)
    shapes = {
        "params": {"embedding": (config.vocab_size, config.d_model)},
        "states": (4, 1025, config.d_model),
    }
    inputs = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x, jnp.float32), shapes, is_leaf=lambda x: type(x) is tuple
    )
    tokens = jax.ShapeDtypeStruct((4, 1024), jnp.int32)

    def program(chunk):
        def loss(inputs, tokens):
            found, entropy = token_statistics(
                model, inputs["params"], inputs["states"], tokens, 1.0, chunk
            )
            return -jnp.mean(found) - 0.01 * jnp.mean(entropy)

        compiled = jax.jit(jax.grad(loss)).lower(inputs, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    sizes = {"whole_bytes": program(1024), "chunked_bytes": program(64)}
    return {**sizes, "chunked/whole": sizes["chunked_bytes"] / sizes["whole_bytes"]}


BENCHMARKS = {
    "generation": generation,
    "ragged": ragged,
    "long_cache": long_cache,
    "log_probs": log_probs,
    "loss_memory": loss_memory,
}
