"""What every registered objective keeps to; and that the contract sees what breaks it."""

import jax
import jax.numpy as jnp
import pytest
from wrong_parts import Given, refused

from dfpo_jax import contracts
from dfpo_jax.objectives import (
    Clip,
    Divergence,
    Entropy,
    Expert,
    Flowrl,
    Kl,
    Objective,
    Objectives,
    Positive,
)
from dfpo_jax.objectives.flowrl import TREATMENTS
from dfpo_jax.types import Loss

# Settings that take other branches than the default ones.
OTHERS = {
    "clip, dual": Clip(low=0.1, high=0.3, dual=2.0),
    "entropy, on": Entropy(0.1),
    "entropy, in part": Entropy(0.1, leave_out=0.2),
    "kl, in the loss": Kl(0.1),
    "kl, k1": Kl(0.1, estimator="k1"),
    "kl, in the reward": Kl(0.1, where="reward", estimator="k2", target=0.05),
    "positive, on": Positive(0.1),
    "expert, on": Expert(0.1),
    "divergence, kl": Divergence("kl", cap=5.0),
    "divergence, topk_tv": Divergence("topk_tv", top=2),
    "divergence, topk_kl": Divergence("topk_kl", top=2),
    "flowrl, offline": Flowrl(log_z="offline"),
    **{f"flowrl, {name}": Flowrl(importance=name) for name in TREATMENTS if name != "clipped"},
}
REGISTERED = Objectives().parts | Objectives().added


@pytest.mark.parametrize("name", REGISTERED | OTHERS)
def test_an_objective_keeps_the_contract(name):
    settings, field = (REGISTERED | OTHERS)[name], name.partition(",")[0]
    # What stands beside the chosen objective finds its rows by its own name.
    own = field if field in Objectives().added else "objective"
    assert contracts.objective(settings, own=own) is None


def terms(function):
    """(live, batch with stopped gradients, batch, context) -> per_token."""

    def changed(live, batch, context, own):
        stopped = jax.lax.stop_gradient(batch)
        return {"loss": Loss(function(live, stopped, batch, context))}

    return Objective(changed)


def policy_gradient(live, batch):
    return -live.log_probs * batch.advantages


def row_mean(live, batch, *_):
    """Of a row without tokens it is 0 / 0."""
    mean = jnp.sum(live.log_probs * batch.mask, axis=1) / jnp.sum(batch.mask, axis=1)
    return mean[:, None] * batch.advantages


def prepared(old, rollout):
    return {"sums": jnp.sum(old.log_probs, axis=1)}


def of_rows(live, batch, context, own):
    sums = jax.lax.stop_gradient(batch.own["objective"]["sums"])
    return {"loss": Loss(live.log_probs * sums[:, None])}


WRONG = {
    "gradient to advantages": (
        terms(lambda live, _, batch, __: policy_gradient(live, batch)),
        "no gradient may reach batch and context, and one reaches batch.advantages; use jax.lax",
    ),
    "gradient to controls": (
        terms(lambda live, b, _, c: policy_gradient(live, b) * c.controls["value_scale"]),
        "no gradient may reach batch and context, and one reaches context.controls.value_scale;",
    ),
    "mean over the batch": (
        terms(lambda live, b, *_: policy_gradient(live, b) / len(b.mask)),
        "the loss 'loss' must be the same when the batch is split",
    ),
    "centred over the batch": (
        terms(lambda live, b, *_: policy_gradient(live, b) - jnp.mean(live.entropy)),
        "the loss 'loss' must be the same when the batch is split",
    ),
    "mean of an empty row": (
        terms(row_mean),
        "gradients must be finite, outside the mask and in empty rows too",
    ),
    "infinite outside the mask": (
        terms(lambda live, b, *_: policy_gradient(live, b) + jnp.log(b.mask)),
        "losses must be finite, outside the mask and in empty rows too",
    ),
    "every slot of a row": (
        terms(lambda live, b, *_: jnp.sum(live.log_probs, axis=1, keepdims=True) * b.advantages),
        "the loss 'loss' must not change with what lies outside the mask or in empty rows",
    ),
    "every slot of a row, prepared": (
        Objective(of_rows, prepare=prepared),
        "the loss 'loss' must not change with what lies outside the mask or in empty rows",
    ),
    "every slot of a row, as a reward": (
        Objective(
            lambda live, *_: {"loss": Loss(live.entropy)},
            reward=lambda old: jnp.cumsum(old.log_probs, axis=1),
        ),
        "reward must not change with what lies outside the mask or in empty rows",
    ),
    "controls that are not finite": (
        Objective(
            lambda live, *_: {"loss": Loss(live.entropy)},
            controls={"width": 1.0},
            adapt=lambda controls, means: {"width": jnp.exp(1e3 * controls["width"])},
        ),
        "adapt returned Array(inf, dtype=float32, weak_type=True) for 'width'; it must return fin",
    ),
    "wrong shape": (
        terms(lambda live, *_: jnp.mean(live.log_probs, axis=1)),
        "terms returned float32 (2,) as per_token of 'loss'; it must return floats [B, R] (here ",
    ),
}


@pytest.mark.parametrize(("part", "said"), WRONG.values(), ids=WRONG)
def test_what_breaks_the_contract_is_seen(part, said):
    assert refused(f"Given: {said}", contracts.objective, Given(part), error=AssertionError)


def test_an_objective_with_a_network_rows_and_controls_of_its_own_keeps_it():
    def of_both(live, batch, context, own):
        gain = batch.own["objective"]["gain"] * context.controls["width"] + batch.advantages
        value = live.hidden[:, -batch.mask.shape[1] :] @ own["w"]
        return {"loss": Loss(-live.log_probs * jax.lax.stop_gradient(gain)), "value": Loss(value)}

    part = Objective(
        of_both,
        init=lambda key, width: {"w": jnp.zeros(width)},
        prepare=lambda old, rollout: {"gain": rollout.rewards[:, None] * old.mask},
        controls={"width": 1.0},
        adapt=lambda controls, means: {"width": min(2.0, 1.1 * controls["width"])},
    )
    assert contracts.objective(Given(part)) is None
