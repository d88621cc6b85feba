"""The distribution that tokens are drawn from, and the draw, without sorting the vocabulary."""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dfpo_jax.types import Array

_REMOVED = -1e30
_LARGEST_BLOCK = 512  # tokens, see `draw`
_INFINITY = int(np.float32(np.inf).view(np.int32))  # infinity's rank in the order of floats


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn.

    Attributes:
      max_new_tokens: length limit R of a response, in tokens.
      temperature: logits are divided by it; 0 means greedy decoding.
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: keep the smallest set of tokens whose probability reaches top_p; 1 keeps all.
      slots: how many responses are decoded at once, 0 for all. When some have ended, the next ones
        take their slots. It changes time and memory, not the samples.
      prefill_rows: the most prompts that the model reads at once, 0 for all.
      pack_prompts: whether these are rows of up to 8 prompts each instead, so that reading takes
        time for tokens, not for padding. Changes results by rounding.
      parts: how many parts the prompts of a round are sampled in, one after the other. The texts of
        a part are decoded and verified while the next is sampled; in return, each part waits for
        its longest response. It changes time and memory, not the samples.
      cache_dtype: type of the key-value cache; "" for the model's compute type.
      wide_rows: the number of responses decoded at once from which CPUs multiply rows by kernels, 0
        for none; fewer are multiplied as columns. Changes results by rounding.

    Raises:
      ValueError: a value is out of range; the message says what is allowed.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    slots: int = 0
    prefill_rows: int = 0
    pack_prompts: bool = False
    parts: int = 1
    cache_dtype: str = ""
    wide_rows: int = 256

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
        for name, zero in (("slots", "all"), ("prefill_rows", "all"), ("wide_rows", "none")):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 ({zero}) or more")
        if self.pack_prompts and self.prefill_rows == 0:
            raise ValueError(
                "pack_prompts is True and prefill_rows is 0; it must be at least 1, the number of "
                "packed rows that are read at once"
            )
        if self.parts < 1:
            raise ValueError(f"parts is {self.parts}; it must be at least 1")
        if self.cache_dtype not in ("", "float32", "bfloat16", "float16"):
            raise ValueError(
                f"cache_dtype is {self.cache_dtype!r}; it must be '', float32, bfloat16 or float16"
            )

    def part_of(self, prompts: int) -> int:
        """How many of so many prompts make a part; the last one may be smaller."""
        return -(-prompts // self.parts)


def _log_probs(logits: Array, threshold: Array, partition: Array, temperature: float) -> Array:
    """Log-probabilities of some logits [B, n] of a row, given `_law` [B, 1] of the whole row."""
    scaled = logits / temperature
    return jnp.where(scaled < threshold, _REMOVED, scaled - partition)  # NaN stays NaN


def _law(logits: Array, config: SamplingConfig) -> tuple[Array, Array]:
    """The smallest scaled logit that is kept, and log sum exp of all kept ones: [B, 1] each."""
    vocab = logits.shape[1]
    scaled = logits / config.temperature
    top = jnp.max(scaled, axis=1, keepdims=True)
    threshold = jnp.full_like(top, -jnp.inf)
    if 0 < config.top_k < vocab:
        k = jnp.full_like(top, config.top_k)
        threshold = _largest_threshold(scaled, lambda kept: kept.astype(jnp.float32), k)
    if config.top_p < 1.0:
        mass = jnp.where(scaled >= threshold, jnp.exp(scaled - top), 0.0)
        wanted = config.top_p * jnp.sum(mass, axis=1, keepdims=True)
        threshold = _largest_threshold(scaled, lambda kept: jnp.where(kept, mass, 0.0), wanted)
    mass = jnp.where(scaled >= threshold, jnp.exp(scaled - top), 0.0)
    return threshold, top + jnp.log(jnp.sum(mass, axis=1, keepdims=True))


def _largest_threshold(x: Array, measure, wanted: Array) -> Array:
    """The largest float t with sum(measure(x >= t)) >= wanted, by row: [B, 1].

    It bisects the 32 bits of t, which takes 32 sums over a row instead of a sort.

    Args:
      x: [B, V] float32, not NaN.
      measure: from [B, V] bool to [B, V] float32 of at least 0.
      wanted: [B, 1]; t = -inf must reach it.
    """

    def halve(_, bounds):
        low, high = bounds  # reached at low, not at high
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        total = jnp.sum(measure(x >= _float_of(middle)), axis=1, keepdims=True)
        reached = total >= wanted
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    low = jnp.full(wanted.shape, -_INFINITY - 1, jnp.int32)
    high = jnp.full(wanted.shape, _INFINITY, jnp.int32)
    return _float_of(jax.lax.fori_loop(0, 32, halve, (low, high))[0])


def _float_of(order: Array) -> Array:
    """The float32 of a rank in the order of floats; negative floats have negative ranks."""
    bits = jnp.where(order < 0, order ^ 0x7FFFFFFF, order)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def draw(keys: Array, logits: Array, config: SamplingConfig) -> tuple[Array, Array]:
    """Draw one token per row: tokens [B] int32 and their log-probabilities [B].

    It draws a block of the vocabulary by its mass, then a token within the block. Each draw takes
    the largest log-probability plus Gumbel noise, so only the blocks and the tokens of one block
    need random numbers.

    Args:
      keys: [B] typed PRNG keys.
      logits: [B, V] float.
      config: temperature, top_k, top_p.
    """
    chex.assert_rank([keys, logits], [1, 2])
    if config.temperature == 0.0:
        return _argmax(logits), jnp.zeros(len(logits), jnp.float32)
    logits = logits.astype(jnp.float32)
    vocab = logits.shape[1]
    size = next(n for n in range(min(_LARGEST_BLOCK, vocab), 0, -1) if vocab % n == 0)
    threshold, partition = _law(logits, config)
    log_probs = _log_probs(logits, threshold, partition, config.temperature)
    mass = jnp.sum(jnp.exp(log_probs).reshape(len(logits), -1, size), axis=2)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (vocab // size + size,)))(keys)
    block = jnp.argmax(jnp.log(mass) + noise[:, size:], axis=1)
    columns = block[:, None] * size + jnp.arange(size)[None]
    inside = jnp.take_along_axis(logits, columns, axis=1)
    inside = _log_probs(inside, threshold, partition, config.temperature)
    place = _argmax(inside + noise[:, :size])[:, None]
    tokens = jnp.take_along_axis(columns, place, axis=1)[:, 0]
    return tokens.astype(jnp.int32), jnp.take_along_axis(inside, place, axis=1)[:, 0]


def _argmax(x: Array) -> Array:
    """The first column of the largest number in every row, [B] int32.

    XLA's own takes CPUs more than twice as long, with all that is fused into it. A row with NaN has
    its last column.
    """

    def passes(x):
        x = jax.lax.optimization_barrier(x)
        largest = jnp.max(x, axis=1, keepdims=True)
        last = x.shape[1] - 1
        return jnp.min(jnp.where(x == largest, jnp.arange(last + 1)[None], last), axis=1)

    return jax.lax.platform_dependent(x, cpu=passes, default=lambda x: jnp.argmax(x, axis=1))


def most_probable(logits: Array, config: SamplingConfig, count: int) -> tuple[Array, Array]:
    """The most probable tokens of a row, in order: tokens [B, K] int32 and log-probabilities.

    Args:
      logits: [B, V] float.
      config: temperature above 0, top_k, top_p: the distribution is that of `draw`.
      count: K, at most V; tokens that truncation has removed have a log-probability of -1e30.
    """
    logits = logits.astype(jnp.float32)
    if count == 0:
        return jnp.zeros((len(logits), 0), jnp.int32), jnp.zeros((len(logits), 0))
    highest, tokens = jax.lax.top_k(logits, count)
    log_probs = _log_probs(highest, *_law(logits, config), config.temperature)
    return tokens.astype(jnp.int32), log_probs
