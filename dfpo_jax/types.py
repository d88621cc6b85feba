"""Pytrees that travel between sampling, algorithms and training, and the index convention.

Index convention. A response has tokens `y[0..L-1]`. `s[i]` is the state *before* token `i`: the
hidden state at the sequence position that predicts `y[i]`; `v[i]` is its value. Reward `r[i]`
follows token `i`. After the last valid token the return is 0 unless the response was cut off and
the configuration asks for a bootstrap from `s[L]`.

Shapes: B sequences, P prompt slots (left-padded), R response slots (right-padded).
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import chex
import numpy as np
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
      top_tokens: [B, R, K] int32, the K tokens that were most probable, or None.
      top_log_probs: [B, R, K] float32, their log-probabilities, or None.
      states: [B, P + R, D] the policy's hidden states at prompt and response, or None; 0 at the
        last slot and where a response has ended, and without meaning at padding.
    """

    tokens: Array
    mask: Array
    log_probs: Array
    truncated: Array
    top_tokens: Array | None = None
    top_log_probs: Array | None = None
    states: Array | None = None


@struct.dataclass
class Unfinished:
    """Prompts whose responses an iteration leaves to the next ones, see `rollout.partial`.

    Attributes:
      prompts: [G, 3] int32, for each the iteration that drew it, its number among the prompts of
        that iteration, and a checksum of it; 0 where no response is begun.
      responses: G * S rows, those of one prompt consecutive, as far as they are written. One that
        is `truncated` below the length limit goes on.
    """

    prompts: Array
    responses: Generation


@struct.dataclass
class Expert:
    """Responses that somebody else than the policy wrote, one for each row of a rollout.

    Attributes:
      tokens: [B, R] int32.
      mask: [B, R] float32, 1 on response tokens.
    """

    tokens: Array
    mask: Array


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
      baseline: [B] float32, mean reward of the responses that a row was chosen from; of plans that
        give "pool", else None.
      expert: another response to each row's prompt; of plans that give "expert", else None.
      top_tokens, top_log_probs: [B, R, K], as in `Generation`, or None.
      states: [B, P + R, D], as in `Generation`, or None.
      samples: responses per prompt, those of one prompt consecutive (static).
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
    baseline: Array | None = None
    expert: Expert | None = None
    top_tokens: Array | None = None
    top_log_probs: Array | None = None
    states: Array | None = None
    samples: int = struct.field(pytree_node=False, default=1)


def rollout_of(
    array: Callable[[tuple[int, ...], Any], Any],
    rows: int,
    prompt: int,
    response: int,
    *,
    samples: int = 1,
    gives: Collection[str] = (),
    top: int = 0,
    states: int = 0,
    dtype: Any = np.float32,
) -> Rollout:
    """A rollout whose arrays a function makes from their shapes and types.

    Args:
      array: (shape, dtype) -> a leaf, such as `jax.ShapeDtypeStruct` or `np.zeros`.
      rows: B.
      prompt: prompt slots P.
      response: response slots R.
      samples: responses per prompt.
      gives: what a plan gives; the rollout has a baseline for "pool", and an expert for "expert".
      top: K of the most probable tokens, 0 for none.
      states: D, width of the hidden states, 0 for none.
      dtype: their type.
    """

    def words():
        return array((rows, response), np.int32)

    def floats(*shape):
        return array((rows, *shape), np.float32)

    return Rollout(
        prompt_tokens=array((rows, prompt), np.int32),
        prompt_mask=floats(prompt),
        tokens=words(),
        mask=floats(response),
        log_probs=floats(response),
        truncated=array((rows,), bool),
        rewards=floats(),
        clean_rewards=floats(),
        groups=array((rows,), np.int32),
        baseline=floats() if "pool" in gives else None,
        expert=Expert(words(), floats(response)) if "expert" in gives else None,
        top_tokens=array((rows, response, top), np.int32) if top else None,
        top_log_probs=floats(response, top) if top else None,
        states=array((rows, prompt + response, states), dtype) if states else None,
        samples=samples,
    )


@struct.dataclass
class Steps:
    """The token MDP of a rollout, as critics and advantages see it.

    Attributes:
      rewards: [B, R] token rewards in value units.
      mask: [B, R], 1 on tokens that count.
      bootstrap: [B] bool, the return continues after the last valid token.
      discount: gamma (static).
    """

    rewards: Array
    mask: Array
    bootstrap: Array
    discount: float = struct.field(pytree_node=False, default=1.0)


class Loss(NamedTuple):
    """A loss per token, before it is reduced to a `Term`.

    Attributes:
      per_token: [B, R], unreduced.
      mask: [B, R] where it counts; None for the mask of the batch.
      weight: Python float or [] array, its coefficient; the float 0.0 makes it a metric.
      aggregation: of a loss of the policy, one of `ops.AGGREGATIONS` that holds whatever is
        configured, such as "sequence_mean" where all tokens of a response have one number; None for
        the configured one.
    """

    per_token: Array
    mask: Array | None = None
    weight: Any = 1.0
    aggregation: str | None = None


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
class Batch:
    """Per-sequence inputs of a loss; every leaf has the batch as its leading axis.

    Attributes:
      row: [B] int32, the row's number in the whole batch; losses fold it into their key, so that
        splitting a batch does not change their random numbers.
      sequence: [B, P + R] int32, prompt then response.
      valid: [B, P + R] float32, 1 on real tokens.
      tokens: [B, R] int32, the response part of `sequence`.
      mask: [B, R] float32, 1 where the losses count.
      old_log_probs: [B, R] the old policy's log-probabilities at the sampling temperature, or None
        where they are those of the policy that is updated.
      ref_log_probs: [B, R] the reference's, or None where no objective needs them.
      behaviour_log_probs: [B, R] those that the tokens were drawn with, or None where no objective
        needs them.
      top_tokens: [B, R, K] int32, tokens that an objective compares distributions on, or None.
      top_log_probs: [B, R, K] those that the sampler gave them, or None.
      importance: [B, R] truncated sampler-to-trainer weights (1 where switched off).
      advantages: [B, R].
      critic: the critic's own targets, or None.
      confidence: [B, R + 1, 6] what the critic reads of the policy's probabilities, or None.
      own: what objectives prepared for themselves, by name.
      packed: how the sequences lie in the decoder's rows, see `models.packing`; None where each
        has one of its own.
    """

    row: Array
    sequence: Array
    valid: Array
    tokens: Array
    mask: Array
    old_log_probs: Array | None = None
    ref_log_probs: Array | None = None
    behaviour_log_probs: Array | None = None
    top_tokens: Array | None = None
    top_log_probs: Array | None = None
    importance: Array | None = None
    advantages: Array | None = None
    critic: Any = None
    confidence: Array | None = None
    own: dict[str, Any] = struct.field(default_factory=dict)
    packed: Any = None


@struct.dataclass
class Context:
    """Inputs of a loss that are shared by all rows.

    Attributes:
      controls: by name, [] what changes between iterations.
      policy_scale: [] 1, or 0 while only the critic learns.
      critic: the critic head's parameters at the start of the iteration (never differentiated), or
        None.
      whitening: statistics of the critic's features, which the state keeps after the iteration, or
        None.
      explained_variance: [] of the iteration's returns by the critic's mean; None without a critic.
    """

    controls: dict[str, Array]
    policy_scale: Array
    critic: ArrayTree | None = None
    whitening: ArrayTree | None = None
    explained_variance: Array | None = None


VALUE_UNITS = {"value_shift": 0.0, "value_scale": 1.0}
"""Controls that every algorithm has, with first values: mu and sigma of the value units."""


@struct.dataclass
class TrainState:
    """Everything that must survive a restart.

    Attributes:
      step: [] int32, finished iterations.
      skipped: [] int32, updates in a row, up to the last one, that were not finite.
      params: by network: "policy" and, for algorithms with them, "critic" and others.
      opt_state: optimizer states of the networks that train, by network.
      reference: policy parameters that the run began with, against which a KL is measured, or None;
        with LoRA only those that train.
      controls: by name, [] float32, what the algorithm changes between iterations: "value_shift"
        and "value_scale" (mu and sigma of the value units z = (G - mu) / sigma), and those of its
        objectives, such as "kl_coefficient".
      key: typed PRNG key, constant during a run; iteration n uses fold_in(key, n).
      past: what trains in the policy, at the starts of the last `train.behaviour_lag` iterations;
        the oldest first.
      unfinished: what partial rollouts have begun, or None without them.
    """

    step: Array
    skipped: Array
    params: ArrayTree
    opt_state: ArrayTree
    reference: ArrayTree | None
    controls: dict[str, Array]
    key: Array
    past: tuple[ArrayTree, ...] = ()
    unfinished: Unfinished | None = None
