"""Pytrees that travel between sampling, algorithms and training, and the index convention.

Index convention. A response has tokens `y[0..L-1]`. `s[i]` is the state *before* token `i`: the
hidden state at the sequence position that predicts `y[i]`; `v[i]` is its value. Reward `r[i]`
follows token `i`. After the last valid token the return is 0 unless the response was cut off and
the configuration asks for a bootstrap from `s[L]`.

Shapes: B sequences, P prompt slots (left-padded), R response slots (right-padded).
"""

from typing import Any

import chex
from flax import struct

Array = chex.Array
ArrayTree = chex.ArrayTree


@struct.dataclass
class Generation:
    """What the sampler returns: device arrays only.

    Attributes:
      tokens: [B, R] int32, sampled tokens; slots after the end hold the pad id.
      mask: [B, R] float32, 1 on sampled tokens up to and including the end-of-sequence token.
      log_probs: [B, R] float32, log-probability (nats) of each token under the distribution it
        was really drawn from (temperature, top-k and top-p applied); 0 outside the mask.
      truncated: [B] bool, True where the length limit was reached before an end of sequence.
    """

    tokens: Array
    mask: Array
    log_probs: Array
    truncated: Array


@struct.dataclass
class Rollout:
    """Prompts, sampled responses and their rewards, ready for `Algorithm.prepare`.

    Attributes:
      prompt_tokens: [B, P] int32, left-padded.
      prompt_mask: [B, P] float32, 1 on prompt tokens.
      tokens: [B, R] int32, response tokens.
      mask: [B, R] float32, 1 on response tokens (a response may be empty).
      log_probs: [B, R] float32, behaviour log-probabilities (nats).
      truncated: [B] bool, response cut off by the length limit.
      rewards: [B] float32, the (possibly corrupted) sequence reward the learner sees.
      clean_rewards: [B] float32, the verifier's own reward; metrics only, never in a loss.
      groups: [B] int32, index of the prompt each response answers.
      samples: responses per prompt, those of one prompt consecutive; static.
    """

    prompt_tokens: Array
    prompt_mask: Array
    tokens: Array
    mask: Array
    log_probs: Array
    truncated: Array
    rewards: Array
    clean_rewards: Array
    groups: Array
    samples: int = struct.field(pytree_node=False, default=1)


@struct.dataclass
class Term:
    """One scalar loss as an exact (sum, count) pair.

    The learner adds `total` and `count` over micro-batches and devices and divides once, so that
    neither splitting a batch nor sharding it changes the result.

    Attributes:
      total: [] float32, sum of the unreduced loss over counted elements.
      count: [] float32, number of counted elements; must not depend on parameters.
      weight: Python float or [] array, coefficient of `total / count` in the objective; 0 makes
        the term a metric.
    """

    total: Array
    count: Array
    weight: Any = 0.0


@struct.dataclass
class TrainState:
    """Everything that must survive a restart.

    Attributes:
      step: [] int32, finished iterations.
      skipped: [] int32, updates in a row, up to the last one, that were not finite.
      params: dict with "policy" and, for algorithms with one, "critic".
      opt_state: dict with the same keys: optimizer states of what trains in them.
      reference: policy parameters the KL is measured against, or None; with LoRA only those that
        train.
      kl_coefficient: [] float32, current weight of the KL penalty.
      value_shift: [] float32, `mu` of the value units z = (G - mu) / sigma.
      value_scale: [] float32, `sigma` of the same.
      key: typed PRNG key, constant during a run; iteration n uses fold_in(key, n).
    """

    step: Array
    skipped: Array
    params: ArrayTree
    opt_state: ArrayTree
    reference: ArrayTree | None
    kl_coefficient: Array
    value_shift: Array
    value_scale: Array
    key: Array
