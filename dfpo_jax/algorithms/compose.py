"""An algorithm from its parts: critic x advantage x objectives.

The parts know neither the transformer nor LoRA; `trunk.py` and `old_policy.py` evaluate it for
them. This file knows warm-up, whitening, the reduction of losses to `Term`s, the copies that
donation makes necessary, and the order of random keys.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.advantages import Advantage, View
from dfpo_jax.algorithms import warmup
from dfpo_jax.algorithms.confidence import (
    confidence_features,
    init_confidence,
    with_confidence,
)
from dfpo_jax.algorithms.config import AlgorithmConfig
from dfpo_jax.algorithms.importance import weight_metrics
from dfpo_jax.algorithms.interface import Algorithm, Batch, Context, Controls, Observed
from dfpo_jax.algorithms.needs import check_parts
from dfpo_jax.algorithms.old_policy import evaluate_old, first_policy_features
from dfpo_jax.algorithms.scores import scores
from dfpo_jax.algorithms.trunk import (
    Evaluated,
    critic_states,
    critic_width,
    evaluate,
    init_critic,
    join_sequence,
    response_states,
    top_log_probs,
)
from dfpo_jax.algorithms.units import value_units
from dfpo_jax.algorithms.whitening import init_whitening, observe_features, whitened
from dfpo_jax.critics import Critic
from dfpo_jax.critics.interface import lambda_returns
from dfpo_jax.metric import Metric
from dfpo_jax.models.packing import Layout, layout_of, padded, whole_layout
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.objectives import Live, Objective
from dfpo_jax.types import VALUE_UNITS, Array, ArrayTree, Loss, Rollout, Steps, Term, TrainState

METRICS = (
    Metric(
        "policy/kl_old",
        "KL divergence of the policy from the one that the iteration started with, in nats per "
        "token, mean over the iteration's updates, each before it is made.",
        formula="`exp(d) - 1 - d`, `d = log pi_old - log pi` of the sampled tokens",
        healthy="0 with one update per iteration; with `log_probs.recompute=False` it then shows "
        "how far the sampler's log-probabilities are from the trainer's. With several updates it "
        "is small: were every ratio at the default clip, it would be .016 (ratio 1.2) to .027 "
        "(ratio .8).",
        advice="Where it is large, lower `policy_optimizer.learning_rate`, `train.epochs` or "
        "`train.minibatches`. Where it is large with one update, set `log_probs.recompute`. Where "
        "it is 0 with several updates, after the warm-up, nothing is learned: read "
        "`policy/gradient_norm`.",
    ),
)


class _Parts(NamedTuple):
    """What an algorithm is composed of; the first argument of all functions below."""

    model: Transformer
    config: AlgorithmConfig
    temperature: float
    critic: Critic | None
    advantage: Advantage
    objectives: dict[str, Objective]
    critic_rests: bool
    layout: Callable[[Rollout], Layout]
    updates_once: bool


def compose(
    model: Transformer,
    config: AlgorithmConfig,
    temperature: float,
    *,
    keeps_reference: bool = False,
    critic_rests: bool = False,
    layout: Callable[[Rollout], Layout] = whole_layout,
    updates_once: bool = False,
) -> Algorithm:
    """The algorithm of these settings.

    Args:
      model: the policy, and the shape of the critic's trunk.
      config: settings of all parts.
      temperature: the sampler's temperature, at which log-probabilities are taken.
      keeps_reference: whether the state holds the first policy even if no objective needs it.
      critic_rests: whether the critic stays as it is; the statistics of its features then do too.
      layout: how `prepare` reads the sequences of a rollout; all at once by default.
      updates_once: whether an iteration makes a single update, whose policy is the old one: its
        log-probabilities are then evaluated there alone.

    Raises:
      ValueError: parts that cannot work together, see `needs.check_parts`.
    """
    check_parts(config)
    critic, advantage = config.critic.build(), config.advantage.build()
    objectives = config.objective.build()
    settings = (critic_rests, layout, updates_once)
    parts = _Parts(model, config, temperature, critic, advantage, objectives, *settings)

    def bound(function, wanted=True):
        return functools.partial(function, parts) if wanted else None

    keeps_reference |= any("reference" in x.needs for x in objectives.values())
    controls, networks = dict(VALUE_UNITS), ["policy"]
    if critic is not None:
        controls |= warmup.first_controls(config.critic)
        networks.append("critic")
    for name, objective in objectives.items():
        controls |= objective.controls
        networks += [] if objective.init is None else [name]
    return Algorithm(
        init=bound(_init),
        prepare=bound(_prepare),
        loss=bound(_loss),
        predict=bound(_predict, critic is not None),
        trajectories=bound(_trajectories, critic is not None and critic.paths is not None),
        controls=controls,
        observe=bound(_observe),
        adapt=bound(_adapt),
        networks=tuple(networks),
        keeps_reference=keeps_reference,
        features=bound(_features, keeps_reference),
        top=max(objective.top for objective in objectives.values()),
        separate_critic=config.critic.trunk == "own",
    )


def _init(parts: _Parts, key: Array, policy_params: ArrayTree) -> ArrayTree:
    params, width = {"policy": policy_params}, parts.model.config.d_model
    if parts.critic is not None:
        reads = critic_width(parts.config.critic, parts.model)
        head = parts.critic.init(key, reads)
        params["critic"] = init_critic(parts.config.critic, policy_params, head)
        if parts.config.critic.confidence:
            own_key = jax.random.fold_in(key, len(parts.objectives))
            params["critic"]["confidence"] = init_confidence(own_key, reads)
        if parts.config.critic.whiten > 0.0:
            params["critic"]["whitening"] = init_whitening(reads)
    for number, (name, objective) in enumerate(parts.objectives.items()):
        if objective.init is not None:
            params[name] = objective.init(jax.random.fold_in(key, number), width)
    return params


def _prepare(
    parts: _Parts, state: TrainState, rollout: Rollout, key: Array
) -> tuple[Batch, Context]:
    critic, config = parts.critic, parts.config
    critic_key, policy_key = jax.random.split(key)
    layout = parts.layout(rollout)
    inputs = (state, rollout, parts.temperature)
    found = evaluate_old(parts.model, config, parts.objectives, *inputs, layout)
    steps, view, targets, head, whitening = found.steps, None, None, None, None
    if critic is not None:
        head, length = state.params["critic"]["head"], rollout.tokens.shape[1]
        inputs = (found.old.hidden, found.sequence, found.valid, length)
        states = _critic_features(parts, state.params, *inputs, found.confidence, layout)
        if config.critic.whiten > 0.0:
            whitening = state.params["critic"]["whitening"]
            if not parts.critic_rests:
                seen = (states[:, :-1], steps.mask, config.critic.whiten)
                whitening = observe_features(whitening, *seen)
            states = whitened(whitening, states)
        reading = critic.read(head, states)
        law = critic.law(reading)
        if not config.returns.outcome:
            steps = _with_predicted_outcome(steps, law)
        returns = functools.partial(critic.returns, policy_key, reading, steps)
        view = View(law, returns, None if critic.heads is None else critic.heads(reading))
        targets = critic.targets(critic_key, reading, steps, config.critic.lambda_)
    if "scores" in parts.advantage.needs:
        inputs = (state.params["policy"], found, rollout, parts.temperature)
        view = (view or View(None, None))._replace(scores=scores(parts.model, *inputs))
    advantages = _advantages(parts, view, steps, rollout, policy_key)
    old = found.old
    if view is not None and view.heads is not None:
        old = old._replace(heads=view.heads[:, :-1])
    batch = Batch(
        row=jnp.arange(len(rollout.tokens)),
        sequence=found.sequence,
        valid=found.valid,
        tokens=rollout.tokens,
        mask=steps.mask,
        old_log_probs=None if _is_old_policy(parts) else old.log_probs,
        ref_log_probs=old.ref_log_probs,
        behaviour_log_probs=_needed(parts, "behaviour", rollout.log_probs),
        top_tokens=rollout.top_tokens,
        top_log_probs=rollout.top_log_probs,
        importance=found.importance,
        advantages=advantages,
        critic=targets,
        confidence=found.confidence,
        own={
            name: objective.prepare(old, rollout)
            for name, objective in parts.objectives.items()
            if objective.prepare is not None
        },
    )
    policy_scale = jnp.float32(1.0)
    if critic is not None:
        policy_scale = warmup.policy_scale(config.critic, state.step, state.controls)
    # The train step donates the state: without a copy, the context would share deleted buffers.
    context = Context(
        controls=jax.tree.map(jnp.copy, dict(state.controls)),
        policy_scale=policy_scale,
        critic=jax.tree.map(jnp.copy, head),
        whitening=jax.tree.map(jnp.copy, whitening),
        explained_variance=_explained_variance(view, steps) if _has_outcome(parts) else None,
    )
    return batch, context


def _critic_features(
    parts: _Parts,
    params: ArrayTree,
    hidden: Array | None,
    sequence: Array,
    valid: Array,
    length: int,
    confidence: Array | None,
    layout: Layout = padded,
) -> Array:
    """What the critic reads at s_0 .. s_R, before it is whitened; arguments as `critic_states`."""
    inputs = (hidden, sequence, valid, length)
    states = critic_states(parts.config.critic, parts.model, params, *inputs, layout)
    return with_confidence(params["critic"], states, confidence)


def _with_predicted_outcome(steps: Steps, law: Array) -> Steps:
    """The steps, with the value of the state before the last token as reward of that token (ours).

    Without it the value of what follows a response, 0, would count the end of a good one as bad.
    """
    ends = ops.last_valid(steps.mask) * (1.0 - steps.bootstrap[:, None])
    return steps.replace(rewards=steps.rewards + ends * jnp.mean(law[:, :-1], axis=-1))


def _advantages(
    parts: _Parts, view: View | None, steps: Steps, rollout: Rollout, key: Array
) -> Array:
    """Advantages [B, R], 0 outside the mask and where the advantage keeps none."""
    if parts.config.advantage.channel.is_on:
        view, steps = parts.config.advantage.channel.inverted(key, view, steps)
    advantages = parts.advantage.estimate(view, steps, rollout)
    if parts.config.advantage.whiten:
        advantages = ops.masked_whiten(advantages, steps.mask)
    if parts.advantage.keep is not None:
        advantages = advantages * parts.advantage.keep(view, steps)
    return advantages * steps.mask


def _is_old_policy(parts: _Parts) -> bool:
    """Whether the policy of the update is the old one, as the trainer evaluates it."""
    return parts.updates_once and parts.config.log_probs.recompute


def _needed(parts: _Parts, need: str, value: Array) -> Array | None:
    """The value where an objective needs it."""
    return value if any(need in x.needs for x in parts.objectives.values()) else None


def _has_outcome(parts: _Parts) -> bool:
    """Whether there are returns of responses and a critic to predict them."""
    return parts.critic is not None and parts.config.returns.outcome


def _explained_variance(view: View, steps: Steps) -> Array:
    """[] of the observed returns by the mean of the critic's law."""
    values = jnp.mean(view.law, axis=-1)
    return ops.explained_variance(values[:, :-1], lambda_returns(values, steps, 1.0), steps.mask)


def _loss(
    parts: _Parts, params: ArrayTree, batch: Batch, context: Context, key: Array
) -> dict[str, Term]:
    batch, context = jax.lax.stop_gradient((batch, context))
    shape = (batch.tokens.shape[1], parts.temperature, parts.config.log_probs.chunk)
    sequences = (batch.sequence, batch.valid)
    policy = evaluate(parts.model, params["policy"], *sequences, *shape, batch.packed)
    terms = _policy_terms(parts, params, policy, batch, context)
    if parts.critic is None:
        return terms
    return terms | _critic_terms(parts, params, policy.hidden, batch, context, key)


def _policy_terms(
    parts: _Parts, params: ArrayTree, policy: Evaluated, batch: Batch, context: Context
) -> dict[str, Term]:
    log_probs, top = policy.log_probs, None
    if batch.old_log_probs is None:
        batch = batch.replace(old_log_probs=jax.lax.stop_gradient(log_probs))
    if batch.top_tokens is not None:
        states = response_states(policy.hidden, batch.tokens.shape[1])
        inputs = (batch.tokens, log_probs, batch.top_tokens, parts.temperature)
        top = top_log_probs(parts.model, params["policy"], states, *inputs)
    live = Live(*policy, top)
    kl_old = ops.kl_estimate(log_probs, batch.old_log_probs, "k3")
    losses = {"kl_old": Loss(kl_old, weight=0.0)}
    if batch.behaviour_log_probs is not None:
        losses |= weight_metrics(log_probs, batch)
    for name, objective in parts.objectives.items():
        losses |= objective.terms(live, batch, context, params.get(name))

    def reduced(loss: Loss) -> Term:
        mode = loss.aggregation or parts.config.objective.aggregation
        weights, count = ops.aggregate_weights(batch.mask, mode)
        is_metric = isinstance(loss.weight, float) and loss.weight == 0.0
        weight = 0.0 if is_metric else loss.weight * context.policy_scale
        return Term(jnp.sum(loss.per_token * weights), count, weight)

    return {f"policy/{name}": reduced(loss) for name, loss in losses.items()}


def _critic_terms(
    parts: _Parts, params: ArrayTree, hidden: Array, batch: Batch, context: Context, key: Array
) -> dict[str, Term]:
    length, config = batch.tokens.shape[1], parts.config.critic
    inputs = (hidden, batch.sequence, batch.valid, length)
    layout = layout_of(batch.packed)
    states = _critic_features(parts, params, *inputs, batch.confidence, layout)
    if context.whitening is not None:
        states = whitened(context.whitening, states)
    # A row's key depends on its number alone, so that splitting a batch changes nothing.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.row)
    head = params["critic"]["head"]
    terms = {}
    if context.explained_variance is not None:
        terms[warmup.METRIC] = Term(context.explained_variance, jnp.float32(1.0))
    for name, loss in parts.critic.losses(head, states, batch.critic, context.critic, keys).items():
        mask = batch.mask if loss.mask is None else loss.mask
        total, count = ops.masked_sum_and_count(loss.per_token, mask)
        terms[f"critic/{name}"] = Term(total, count, config.loss_weight * loss.weight)
    return terms


def _reading(parts: _Parts, state: TrainState, rollout: Rollout, states: slice):
    """What the critic makes of some of the states s_0 .. s_R."""
    params, length = state.params, rollout.tokens.shape[1]
    sequence, valid = join_sequence(rollout)
    hidden, features = None, None
    confidence = parts.config.critic.confidence
    if parts.config.critic.trunk != "own" or confidence:
        shape = (length, parts.temperature, parts.config.log_probs.chunk)
        policy = evaluate(parts.model, params["policy"], sequence, valid, *shape)
        hidden = policy.hidden
    if confidence:
        inputs = (policy.log_probs, policy.entropy, rollout.mask)
        features = confidence_features(*inputs, parts.model.config.vocab_size)
    found = _critic_features(parts, params, hidden, sequence, valid, length, features)
    if parts.config.critic.whiten > 0.0:
        found = whitened(params["critic"]["whitening"], found)
    return parts.critic.read(params["critic"]["head"], found[:, states])


def _predict(parts: _Parts, state: TrainState, rollout: Rollout) -> Array:
    law = parts.critic.law(_reading(parts, state, rollout, slice(-1)))
    return law * state.controls["value_scale"] + state.controls["value_shift"]


def _features(parts: _Parts, state: TrainState, rollout: Rollout) -> Array:
    return first_policy_features(parts.model, parts.config, state, rollout, parts.temperature)


def _trajectories(parts: _Parts, state: TrainState, rollout: Rollout) -> Array:
    return parts.critic.paths(_reading(parts, state, rollout, slice(1)))[:, :, 0]


def _observe(parts: _Parts, controls: Controls, observed: Observed) -> Controls:
    if not parts.config.critic.source:  # a value model keeps its own
        controls = {**controls, **value_units(controls, observed, parts.config.critic.units)}
    for objective in parts.objectives.values():
        if objective.observe is not None:
            controls |= objective.observe(controls)
    return controls


def _adapt(parts: _Parts, controls: Controls, means: Mapping[str, float]) -> Controls:
    for objective in parts.objectives.values():
        if objective.adapt is not None:
            controls = {**controls, **objective.adapt(controls, means)}
    if parts.critic is not None:
        controls = {**controls, **warmup.adapt(parts.config.critic, controls, means)}
    return controls
