"""Autoregressive sampling: one prefill, then a `while_loop` that stops when every row has ended."""

from dataclasses import dataclass

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dfpo_jax.models import lora
from dfpo_jax.models.transformer import KVCache, Transformer, init_cache
from dfpo_jax.types import Array, ArrayTree, Generation

_REMOVED = -1e30


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn.

    Attributes:
      max_new_tokens: length limit R of a response, in tokens.
      temperature: logits are divided by it; 0 means greedy decoding.
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: keep the smallest set of tokens whose probability reaches top_p; 1 keeps all.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        """Check ranges."""
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (off) or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")


def sampling_log_probs(logits: Array, config: SamplingConfig) -> Array:
    """Log-probabilities of the distribution that is really sampled.

    Temperature first, then top-k, then top-p on what top-k left; ties at a threshold are kept.

    Args:
      logits: [B, V] float.
      config: temperature, top_k, top_p.

    Returns:
      [B, V] float32 log-probabilities (nats); removed tokens hold about -1e30. With temperature 0
      all mass lies on the first most likely token.
    """
    chex.assert_rank(logits, 2)
    logits = logits.astype(jnp.float32)
    vocab = logits.shape[-1]
    if config.temperature == 0.0:
        best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), vocab, dtype=jnp.float32)
        return jnp.where(best > 0, 0.0, _REMOVED)
    logits = logits / config.temperature
    if 0 < config.top_k < vocab:
        threshold = jax.lax.top_k(logits, config.top_k)[0][:, -1:]
        logits = jnp.where(logits >= threshold, logits, _REMOVED)
    if config.top_p < 1.0:
        descending = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        probs = jax.nn.softmax(descending, axis=-1)
        kept = jnp.cumsum(probs, axis=-1) - probs < config.top_p
        threshold = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= threshold, logits, _REMOVED)
    return jax.nn.log_softmax(logits, axis=-1)


def draw(key: Array, logits: Array, config: SamplingConfig) -> tuple[Array, Array]:
    """Draw one token per row: tokens [B] int32 and their log-probabilities [B]."""
    log_probs = sampling_log_probs(logits, config)
    if config.temperature == 0.0:
        tokens = jnp.argmax(logits, axis=-1)
    else:
        tokens = jax.random.categorical(key, log_probs, axis=-1)
    chosen = jnp.take_along_axis(log_probs, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), chosen


def sampling_model(model: Transformer) -> Transformer:
    """The decoder that reads `sampling_params`: the same one without LoRA."""
    return Transformer(model.config.without_lora()) if model.config.lora.rank > 0 else model


def sampling_params(model: Transformer, params: ArrayTree) -> ArrayTree:
    """The policy as sampling reads it: in the compute type, every layer whole over "fsdp".

    Training splits every matrix over the devices of "fsdp" and brings it together where it is
    needed; decoding needs all of them for every token, so they come together once. "tensor" still
    splits them. Norm scales keep their type, as in training, and the numbers are those that the
    model would compute with. Without logical rules in force only the types change.

    With LoRA the updates are folded into the kernels, which `sampling_model` reads: decoding costs
    nothing more. In a compute type below float32 this rounds otherwise than training does.
    """
    dtype = jnp.dtype(model.config.dtype)
    dummy = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    boxed = jax.eval_shape(
        lambda key, tokens: sampling_model(model).init(key, tokens, tokens)["params"],
        jax.eval_shape(lambda: jax.random.key(0)),
        dummy,
    )

    def one(path, box, x):
        names = [None if name == "embed" else name for name in box.names]
        is_scale = path[-1].key == "scale"
        return nn.with_logical_constraint(x if is_scale else x.astype(dtype), tuple(names))

    params = lora.fold(params, model.config.lora)
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
    return jax.tree_util.tree_map_with_path(one, boxed, params, is_leaf=is_box)


def next_logits(
    model: Transformer, params: ArrayTree, tokens: Array, valid: Array, cache: KVCache
) -> tuple[Array, KVCache]:
    """Logits [B, V] after tokens [B, T], and the cache with them: prefill and decoding step."""
    hidden, cache = model.apply({"params": params}, tokens, valid, cache)
    return model.apply({"params": params}, hidden[:, -1:], method="logits")[:, 0], cache


def _repeat_rows(cache: KVCache, times: int) -> KVCache:
    """Give every prompt's cache to each of its samples (rows of one prompt are consecutive)."""
    if times == 1:
        return cache
    return cache.replace(
        keys=jnp.repeat(cache.keys, times, axis=1),
        values=jnp.repeat(cache.values, times, axis=1),
        valid=jnp.repeat(cache.valid, times, axis=0),
    )


def _is_eos(tokens: Array, eos_ids: tuple[int, ...]) -> Array:
    return jnp.any(tokens[..., None] == jnp.asarray(eos_ids)[None, :], axis=-1)


def generate(
    model: Transformer,
    params: ArrayTree,
    prompt_tokens: Array,
    prompt_mask: Array,
    key: Array,
    *,
    config: SamplingConfig,
    eos_ids: tuple[int, ...],
    pad_id: int,
    num_samples: int = 1,
) -> Generation:
    """Sample responses; pure, to be jitted with everything but the arrays static.

    A row ends with the first token in `eos_ids`, which is part of the response; `pad_id` may be
    one of them, since masks come from lengths. The prompt runs through the model once for all
    `num_samples` of its responses, and decoding stops when every row has ended.

    Args:
      model: the policy.
      params: its parameters.
      prompt_tokens: [N, P] int32, left-padded.
      prompt_mask: [N, P], 1 on prompt tokens.
      key: typed PRNG key.
      config: length limit and sampling distribution.
      eos_ids: token ids that end a response.
      pad_id: fills slots after the end.
      num_samples: responses per prompt; rows of one prompt are consecutive.

    Returns:
      A `Generation` with B = N * num_samples rows.
    """
    chex.assert_rank([prompt_tokens, prompt_mask], 2)
    chex.assert_equal_shape([prompt_tokens, prompt_mask])
    num_prompts, prompt_length = prompt_tokens.shape
    batch, limit = num_prompts * num_samples, config.max_new_tokens

    params, model = sampling_params(model, params), sampling_model(model)
    cache = init_cache(model.config, num_prompts, prompt_length + limit)
    logits, cache = next_logits(model, params, prompt_tokens, prompt_mask, cache)
    cache = _repeat_rows(cache, num_samples)
    logits = jnp.repeat(logits, num_samples, axis=0)
    token, log_prob = draw(jax.random.fold_in(key, 0), logits, config)
    done = _is_eos(token, eos_ids)
    tokens = jnp.full((batch, limit), pad_id, jnp.int32).at[:, 0].set(token)
    mask = jnp.zeros((batch, limit), jnp.float32).at[:, 0].set(1.0)
    log_probs = jnp.zeros((batch, limit), jnp.float32).at[:, 0].set(log_prob)

    def going(carry):
        return (carry[0] < limit) & ~jnp.all(carry[2])

    def body(carry):
        step, token, done, cache, tokens, mask, log_probs = carry
        logits, cache = next_logits(model, params, token[:, None], ~done[:, None], cache)
        new, log_prob = draw(jax.random.fold_in(key, step), logits, config)
        token = jnp.where(done, pad_id, new)
        alive = (~done).astype(jnp.float32)
        tokens = tokens.at[:, step].set(token)
        mask = mask.at[:, step].set(alive)
        log_probs = log_probs.at[:, step].set(log_prob * alive)
        return step + 1, token, done | _is_eos(token, eos_ids), cache, tokens, mask, log_probs

    carry = (jnp.int32(1), token, done, cache, tokens, mask, log_probs)
    _, _, done, _, tokens, mask, log_probs = jax.lax.while_loop(going, body, carry)
    return Generation(tokens=tokens, mask=mask, log_probs=log_probs, truncated=~done)
