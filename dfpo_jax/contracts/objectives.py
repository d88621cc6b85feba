"""The contract of an objective."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfpo_jax.contracts import measure
from dfpo_jax.contracts.measure import MASK, B, D, P, R, only
from dfpo_jax.objectives.check import all_controls, check_controls, check_objective
from dfpo_jax.objectives.interface import Live, Objective, Old
from dfpo_jax.settings import call_custom
from dfpo_jax.trial import HEADS
from dfpo_jax.types import Batch, Context, Rollout


def objective(
    settings: Any, own: str = "objective", others: Mapping[str, Objective] | None = None
) -> None:
    """Raise AssertionError unless an objective keeps the contract of `objectives.Objective`.

    Shapes and controls; losses and gradients are finite everywhere, also of empty rows; splitting a
    batch changes no loss; what belongs to no token changes nothing; no gradient reaches batch or
    context.

    Args:
      settings: of the objective.
      own: its name in `batch.own`: "objective" for the chosen one.
      others: the objectives that stand beside it, by name.
    """
    others = others or {}
    name, part = measure.built(
        settings, lambda part, name: check_objective(part, name, others, own)
    )
    controls = all_controls(part, name, others)
    losses = check_objective(part, name, others, own)
    measure.asserted(lambda: check_controls(part, name, controls, losses, call_custom))
    run, random = jax.jit(_program(part, own)), np.random.default_rng(0)
    params = None
    if part.init is not None:
        params = measure.noisy(jax.jit(part.init, static_argnums=1)(jax.random.key(1), D), random)
    scalars = {key: np.float32(0.3) for key in controls}
    context, inputs = Context(scalars, np.float32(1.0)), _policy(part, random, scalars)

    def result(inputs, mask=MASK) -> dict:
        live, old, batch, rollout = inputs
        old, batch = old._replace(mask=mask), batch.replace(mask=mask)
        found = run(params, context, live, old, batch, rollout.replace(mask=mask))
        measure.check_finite(name, found)
        return found

    found, _ = result(inputs), result(inputs, 0 * MASK)
    measure.check_split(name, found)
    measure.check_stopped(name, found["gradients"], "batch", "context")
    junk = result(_with_junk(*inputs))
    measure.check_junk(name, "reward", found["reward"], junk["reward"])
    measure.check_losses_junk(name, found, junk)


def _program(part: Objective, own: str) -> Callable[..., dict]:
    """Everything that the contract looks at, as one program."""

    def run(params, context, live, old, batch, rollout):
        if part.prepare is not None:
            batch = batch.replace(own={own: part.prepare(old, rollout)})

        def losses(inputs, where):
            live, batch = jax.tree.map(lambda x: x[where], (inputs["live"], inputs["batch"]))
            return part.terms(live, batch, inputs["context"], inputs["params"])

        inputs = {"live": live, "batch": batch, "context": context, "params": params}
        return {
            "reward": jnp.zeros(MASK.shape) if part.reward is None else part.reward(old),
            **measure.evaluate(losses, inputs, batch.mask),
        }

    return run


def _policy(
    part: Objective, random: np.random.Generator, controls: Mapping[str, np.ndarray]
) -> tuple[Live, Old, Batch, Rollout]:
    """A random rollout under a policy, an older one and, where it is needed, the reference."""
    rollout = measure.rollout(random)
    hidden = random.normal(size=(2, B, P + R, D)).astype(np.float32)
    log_probs = -random.uniform(0.5, 3.0, (5, B, R)).astype(np.float32)
    top = -random.uniform(3.5, 6.0, (2, B, R, part.top)).astype(np.float32) if part.top else None
    reached = np.cumsum(MASK[:, ::-1], axis=1)[:, ::-1] > 0
    reference = log_probs[2] if "reference" in part.needs else None
    batch = Batch(
        row=np.arange(B, dtype=np.int32),
        sequence=np.concatenate([rollout.prompt_tokens, rollout.tokens], axis=1),
        valid=np.concatenate([rollout.prompt_mask, reached.astype(np.float32)], axis=1),
        tokens=rollout.tokens,
        mask=MASK,
        old_log_probs=log_probs[1],
        ref_log_probs=reference,
        behaviour_log_probs=rollout.log_probs if "behaviour" in part.needs else None,
        top_tokens=random.integers(0, 9, top[0].shape).astype(np.int32) if part.top else None,
        top_log_probs=top[0] if part.top else None,
        importance=random.uniform(0.5, 1.5, (B, R)).astype(np.float32),
        advantages=(random.normal(size=(B, R)) * MASK).astype(np.float32),
    )
    live = Live(hidden[0], log_probs[0], -log_probs[3], top[1] if part.top else None)
    old = Old(
        hidden=hidden[1],
        log_probs=log_probs[1],
        ref_log_probs=reference,
        mask=MASK,
        controls=controls,
        expert_log_probs=log_probs[4] * rollout.expert.mask if "expert" in part.needs else None,
        heads=random.normal(size=(B, R, HEADS)).astype(np.float32),
    )
    return live, old, batch, rollout


def _with_junk(
    live: Live, old: Old, batch: Batch, rollout: Rollout
) -> tuple[Live, Old, Batch, Rollout]:
    """The same with other values where there is no token."""

    def junk(x, value=measure.JUNK):
        return None if x is None else only(MASK, x, value)

    reference = junk(batch.ref_log_probs, -1.0)
    live = Live(
        only(batch.valid, live.hidden),
        junk(live.log_probs, -5.0),
        junk(live.entropy),
        junk(live.top_log_probs, -1.0),
    )
    old_log_probs = only(MASK, batch.old_log_probs, -2.0)
    old = old._replace(
        hidden=only(batch.valid, old.hidden),
        log_probs=old_log_probs,
        ref_log_probs=reference,
        expert_log_probs=junk(old.expert_log_probs, -4.0),
        heads=only(MASK, old.heads),
    )
    batch = batch.replace(
        sequence=only(batch.valid, batch.sequence),
        tokens=only(MASK, batch.tokens),
        old_log_probs=old_log_probs,
        ref_log_probs=reference,
        behaviour_log_probs=junk(batch.behaviour_log_probs, -3.0),
        top_tokens=junk(batch.top_tokens),
        top_log_probs=junk(batch.top_log_probs, -1.5),
        importance=only(MASK, batch.importance),
    )
    return live, old, batch, measure.with_junk(rollout)
