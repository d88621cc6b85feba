"""What every registered critic keeps to; and that the contract sees what breaks it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from wrong_parts import Given, refused

from dfpo_jax import contracts
from dfpo_jax.critics import Categorical, Critics, Flow, Quantile, Robust, Scalar
from dfpo_jax.types import Loss

SLOW = ("flow",)  # compiles for longer than five seconds
TAILS = {f"{name}_weight": 0.1 for name in ("cvar", "upper_gain", "mean_shift", "tail_shape")}
# Settings that take other branches than the default ones.
OTHERS = {
    "scalar, clipped": Scalar(value_clip=0.2),
    "quantile, average": Quantile(5, kappa=0.5, target_mode="average"),
    "quantile, dvpo": Quantile(
        5, 1.0, num_heads=3, levels="right", risk_weight=0.1, head_consistency_weight=1.0, **TAILS
    ),
    "categorical, atoms": Categorical(11, projection="linear"),
    "robust, tv": Robust(kind="tv", disjoint=True),
    "flow, ode, average": Flow(
        num_samples=4,
        num_steps=2,
        solver="euler",
        first_step=1.0,
        value_bound=3.0,
        num_quantiles=5,
        inference="ode",
        target_mode="average",
        geometry="reflow",
        tail_targets="flow",
        tail_curvature_weight=0.1,
        uncertainty="discount",
        **TAILS,
    ),
    "flow, tails of returns": Flow(
        num_samples=4,
        num_steps=2,
        solver="euler",
        num_quantiles=5,
        dcfm_base="shift",
        tail_targets="returns",
        uncertainty="emphasize",
        **TAILS,
    ),
    "flow, euler, shared noise": Flow(
        num_samples=4,
        num_steps=2,
        solver="euler",
        num_quantiles=5,
        inference="euler",
        noise="shared",
        geometry_weight=0.0,
    ),
    "flow, flowcritic": Flow(
        num_samples=4,
        num_steps=2,
        solver="euler",
        num_quantiles=5,
        inference="ode",
        target_mode="flowcritic",
        dcfm_weight=0.0,
        geometry_weight=0.0,
        uncertainty="coefficient_of_variation",
    ),
}
REGISTERED = {name: part for name, part in Critics().parts.items() if part.build() is not None}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(part, id=name, marks=[pytest.mark.slow] * name.startswith(SLOW))
        for name, part in (REGISTERED | OTHERS).items()
    ],
)
def test_a_critic_keeps_the_contract(settings):
    assert contracts.critic(settings) is None


def test_only_none_is_no_critic():
    assert Critics().parts.keys() - REGISTERED.keys() == {"none"}


# --- parts that break it --------------------------------------------------------------------------

SCALAR, QUANTILE = Scalar().build(), Quantile(4).build()


def losses(function):
    """The scalar critic with (predicted, live, rows, old_params, states) -> per_token or Loss."""

    def changed(params, states, rows, old_params, keys):
        values = SCALAR.read(params, states)
        found = function(values, jax.lax.stop_gradient(rows), rows, old_params, states)
        return {"mse": found if isinstance(found, Loss) else Loss(found)}

    return SCALAR._replace(losses=changed)


def error(values, rows):
    return jnp.square(values[:, :-1] - rows.returns)


def with_rows(name, per_token):
    """The quantile critic whose rows also hold the mask, with another loss per token."""

    def targets(*inputs):
        return {"samples": QUANTILE.targets(*inputs), "mask": inputs[2].mask}

    def changed(params, states, rows, old_params, keys):
        loss = QUANTILE.losses(params, states, rows["samples"], old_params, keys)["loss"].per_token
        return {name: per_token(loss, jax.lax.stop_gradient(rows["mask"]))}

    return QUANTILE._replace(targets=targets, losses=changed)


def shifted(quantiles):
    return jnp.sort(quantiles + jnp.roll(quantiles, -1, axis=1), axis=-1)


WRONG = {
    "law descends": (QUANTILE._replace(law=lambda q: -q), "law must be sorted ascending"),
    "heads of another state": (
        SCALAR._replace(heads=lambda v: jnp.roll(v, -1, axis=1)[..., None]),
        "heads must not change with what lies",
    ),
    "law of another state": (QUANTILE._replace(law=shifted), "law must not change with what lies"),
    "returns forget lambda": (
        SCALAR._replace(returns=lambda k, r, s, _: SCALAR.returns(k, r, s, 0.5)),
        "returns at lambda 1 must be the observed returns",
    ),
    "returns forget the discount": (
        SCALAR._replace(
            returns=lambda k, r, s, x: SCALAR.returns(k, r, s.replace(discount=1.0), x)
        ),
        "returns at lambda 1 must be the observed returns",
    ),
    "returns forget the bootstrap": (
        SCALAR._replace(
            returns=lambda k, r, s, x: SCALAR.returns(k, r, s.replace(bootstrap=0 * s.bootstrap), x)
        ),
        "returns at lambda 1 must go on behind the last token where steps.bootstrap is true",
    ),
    "gradient through targets": (
        losses(lambda values, _, rows, *__: error(values, rows)),
        "no gradient may reach rows and old_params, and one reaches rows.returns; use jax.lax.st",
    ),
    "gradient to old parameters": (
        losses(lambda v, r, _, old, states: error(v, r) * SCALAR.read(old, states)[:, :-1]),
        "no gradient may reach rows and old_params, and one reaches old_params.output.",
    ),
    "learns nothing": (
        losses(lambda v, rows, *_: jax.lax.stop_gradient(error(v, rows))),
        "losses must have a gradient with respect to params",
    ),
    "loss over the batch": (
        losses(lambda v, rows, *_: error(v, rows) / len(v)),
        "the loss 'mse' must be the same when the batch is split",
    ),
    "loss centred over the batch": (
        losses(lambda v, rows, *_: error(v - jnp.mean(v, 0, keepdims=True), rows)),
        "the loss 'mse' must be the same when the batch is split",
    ),
    "loss of later states": (
        losses(lambda v, rows, *_: error(v, rows) + jnp.square(v[:, 1:])),
        "the loss 'mse' must not change with what lies outside the mask or in empty rows",
    ),
    "mask of its own": (
        losses(lambda v, rows, *_: Loss(error(v, rows), jnp.ones(rows.returns.shape))),
        "the mask of the loss 'mse' must be 0 where that of the steps is",
    ),
    "mean of an empty row": (
        with_rows("mean", lambda loss, mask: Loss(loss / mask.sum(axis=1, keepdims=True))),
        "gradients must be finite, outside the mask and in empty rows too",
    ),
    "returns over the number of tokens": (
        QUANTILE._replace(returns=lambda k, r, s, x: QUANTILE.returns(k, r, s, x) / s.mask.sum()),
        "returns must be finite, outside the mask and in empty rows too",
    ),
    "wrong shape": (
        SCALAR._replace(law=lambda values: values),
        "law returned float32 (2, 4); it must return floats [B, T, M] (here (2, 4, M))",
    ),
}


@pytest.mark.parametrize(("part", "said"), WRONG.values(), ids=WRONG)
def test_what_breaks_the_contract_is_seen(part, said):
    assert refused(f"Given: {said}", contracts.critic, Given(part), error=AssertionError)


def test_a_registered_part_is_in_the_registry_that_these_tests_run_over():
    @dataclasses.dataclass(frozen=True)
    class More(Critics):
        wrong: Given = dataclasses.field(default_factory=lambda: Given(SCALAR))

    assert More().parts.keys() - Critics().parts.keys() == {"wrong"}
