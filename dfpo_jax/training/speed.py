"""How fast an iteration is: seconds by phase, tokens per second, and the share of the peak."""

import jax
import numpy as np

from dfpo_jax.metric import Metric
from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.types import ArrayTree, Rollout

# Published peaks in bfloat16 operations per second and chip, without sparsity, by a part of the
# name that JAX gives a device. Source: Cloud TPU's "System architecture" and NVIDIA's data sheets.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
}
METRICS = (
    Metric(
        "time/sample_seconds",
        "Seconds in which the iteration's responses were sampled and verified, over all rounds of "
        "the plan.",
        healthy="Steady after the first iteration, in which sampling is compiled.",
        advice="Where most of the iteration goes here: lower `sampling.max_new_tokens`, set "
        "`train.prompt_buckets`, or, where verification is slow, raise `task.verifier.workers`.",
    ),
    Metric(
        "time/wait_seconds",
        "Seconds of the iteration that went by before its responses were there.",
        healthy="About `time/sample_seconds`, as nothing else happens meanwhile; with "
        "`train.behaviour_lag` near 0, where responses are sampled beside the updates before.",
        advice="Where it stays large with a lag, sampling takes longer than training: give it more "
        "devices by `mesh.rollout`.",
    ),
    Metric(
        "time/prepare_seconds",
        "Seconds of the iteration in which targets, advantages and the old policy's "
        "log-probabilities were computed.",
        healthy="About a third of `time/update_seconds` with one epoch.",
        advice="`log_probs.recompute=False` saves the log-probabilities, `train.microbatch_tokens` "
        "what is paid for padding.",
    ),
    Metric(
        "time/update_seconds",
        "Seconds of the iteration's updates.",
        healthy="Steady after the first iteration.",
        advice="Where `time/padding` is large, set `train.microbatch_tokens`. Lower "
        "`train.epochs`, and raise `train.microbatches` only as far as memory needs it.",
    ),
    Metric(
        "time/iteration_seconds",
        "Seconds of the whole iteration: responses, preparation and updates. Evaluation and "
        "checkpoints come after it.",
        healthy="Steady after the first iteration.",
        advice="An iteration that takes far longer than its neighbours has usually compiled a "
        "program: fewer `train.prompt_buckets` compile fewer.",
    ),
    Metric(
        "time/sampled_tokens_per_second",
        "Tokens of the iteration's responses over `time/sample_seconds`, on all devices together.",
        healthy="It grows with the responses that are sampled at once, until the device computes "
        "all the time.",
        advice="Sample more at once: raise `train.prompts` or `sampling.slots`.",
    ),
    Metric(
        "time/trained_tokens_per_second",
        "Tokens of prompts and responses, once per epoch, over `time/update_seconds`, on all "
        "devices together. Padding does not count.",
        healthy="It does not depend on how long responses are where `train.microbatch_tokens` is "
        "set; else it falls with `time/padding`.",
        advice="See `time/update_seconds`.",
    ),
    Metric(
        "time/padding",
        "Share of the slots of prompts and responses that hold no token.",
        formula="`1 - tokens / (B (P + R))`",
        healthy="With `train.microbatch_tokens` the decoder does not pay for it.",
        advice="Above about a third, set `train.microbatch_tokens`; where prompts differ in "
        "length, `train.prompt_buckets` too.",
    ),
    Metric(
        "time/flops_utilisation",
        "Model FLOPs utilisation of the updates: what the policy's forward and backward passes "
        "need over what the devices could do in that time.",
        formula="`(6 N + 12 L H T) tokens/s / (devices * peak)`: N parameters of policy and "
        "critic, H the width of L layers of attention, T the mean length (PaLM, arXiv 2204.02311, "
        "appendix B)",
        healthy="Above .3 on large models. Padding and what `model.remat` computes twice count as "
        "lost.",
        advice="See `time/update_seconds`; more tokens at once help small models.",
        when="on devices whose peak is known",
    ),
)


def speed_metrics(
    rollout: Rollout,
    model: TransformerConfig,
    params: ArrayTree,
    epochs: int,
    *,
    devices: int,
    waited: float,
    sampled: float,
    prepared: float,
    updated: float,
) -> dict[str, float]:
    """Metrics of an iteration's time.

    Args:
      rollout: its responses.
      model: the policy.
      params: of all networks.
      epochs: passes over the rollout.
      devices: that train.
      waited: seconds until the rollout was there.
      sampled, prepared, updated: seconds of the phases.
    """
    sizes = (rollout.prompt_mask.size, rollout.mask.size)
    responses = float(np.sum(rollout.mask))
    tokens = float(np.sum(rollout.prompt_mask)) + responses
    rate = epochs * tokens / updated
    found = {
        "time/wait_seconds": waited,
        "time/sample_seconds": sampled,
        "time/prepare_seconds": prepared,
        "time/update_seconds": updated,
        "time/sampled_tokens_per_second": responses / sampled,
        "time/trained_tokens_per_second": rate,
        "time/padding": 1.0 - tokens / sum(sizes),
    }
    kind = jax.devices()[0].device_kind
    peak = next((peak for name, peak in PEAKS.items() if name in kind), None)
    if peak is not None:
        count = sum(x.size for x in jax.tree.leaves(params))
        if not model.tie_embeddings:  # looking up a row is no product
            count -= model.vocab_size * model.d_model
        attention = 12 * model.num_layers * model.num_heads * model.head_dim
        needed = 6 * count + attention * tokens / len(rollout.mask)
        found["time/flops_utilisation"] = needed * rate / (devices * peak)
    return found
