"""FlowRL's loss: at its optimum, on its network, with every treatment of the weight."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from policy_batch import CONTEXT, random_batch
from reference_policy import valid_slots
from tiny import ragged_rollout

from dfpo_jax import ops
from dfpo_jax.models.partition import Partition
from dfpo_jax.objectives import Flowrl, Old
from dfpo_jax.objectives.flowrl import TREATMENTS

D, BETA = 6, 2.0
ROLLOUT = ragged_rollout()
MASK, THERE = ROLLOUT.mask, ROLLOUT.mask.any(axis=1)
SCALED = reference.group_relative(ROLLOUT.rewards, 2, True)


def case(settings, seed=4):
    """(objective, live, batch): prepared, with hidden states of prompt and response."""
    batch, live = random_batch(seed)
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(8, 4 + MASK.shape[1], D)).astype(np.float32)
    objective = settings.build()
    old = Old(hidden, batch.old_log_probs, batch.ref_log_probs, MASK, {})
    valid = np.concatenate([ROLLOUT.prompt_mask, MASK], axis=1)
    behaviour = (batch.old_log_probs + rng.normal(0, 0.3, MASK.shape)).astype(np.float32)
    own = {"objective": objective.prepare(old, ROLLOUT)}
    batch = batch.replace(valid=valid, behaviour_log_probs=behaviour, own=own)
    return objective, live._replace(hidden=hidden), batch


def params_of(objective, seed=0):
    params = nn.unbox(jax.jit(objective.init, static_argnums=1)(jax.random.key(seed), D))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), params)


def row_means(x):
    return np.array([reference.masked_mean(*row) for row in zip(x, MASK, strict=True)])


def test_the_network_reads_the_mean_state_of_the_prompt():
    objective, live, batch = case(Flowrl(beta=BETA, importance="unclipped"))
    params = params_of(objective)
    found = objective.terms(live, batch, CONTEXT, params)
    log_z = np.zeros(8)
    for b, row in enumerate(ROLLOUT.prompt_mask):
        x = np.mean([live.hidden[b, i] for i in valid_slots(row)], axis=0).astype(float)
        for n in (0, 1):
            x = x @ params[f"Dense_{n}"]["kernel"] + params[f"Dense_{n}"]["bias"]
            x = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
            x = x * params[f"LayerNorm_{n}"]["scale"] + params[f"LayerNorm_{n}"]["bias"]
        log_z[b] = (x @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"])[0]
    np.testing.assert_allclose(found["log_z"].per_token[:, 0], log_z, rtol=1e-3, atol=1e-4)
    delta = log_z + row_means(live.log_probs) - BETA * SCALED - row_means(batch.ref_log_probs)
    weight = np.exp(row_means(live.log_probs - batch.old_log_probs) * MASK.sum(1))
    expected = np.broadcast_to((weight * delta**2)[:, None], MASK.shape)
    np.testing.assert_allclose(found["loss"].per_token, expected, rtol=2e-3, atol=1e-4)
    assert {x.aggregation for x in found.values()} == {"sequence_mean"}
    assert [x.weight for x in found.values()] == [1.0, 0.0, 0.0]


def test_the_gradient_reaches_the_network_and_the_prompts_states_but_no_other():
    objective, live, batch = case(Flowrl())

    def total(hidden, params):
        found = objective.terms(live._replace(hidden=hidden), batch, CONTEXT, params)
        return jnp.sum(found["loss"].per_token * MASK)

    of_hidden, of_params = jax.jit(jax.grad(total, (0, 1)))(live.hidden, params_of(objective))
    read = np.concatenate([ROLLOUT.prompt_mask * THERE[:, None], 0 * MASK], axis=1) > 0
    assert np.array_equal(np.any(of_hidden != 0, axis=-1), read)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(of_params))


def test_loss_and_gradient_are_0_at_the_optimum():
    """Without a network's help: its log Z is a constant, and log pi is the tilt per token."""
    objective, live, batch = case(Flowrl(beta=BETA))
    params = jax.tree.map(jnp.zeros_like, nn.unbox(objective.init(jax.random.key(0), D)))
    params["Dense_2"]["bias"] = jnp.full(1, 0.7)
    tilt = (BETA * SCALED - 0.7).astype(np.float32)
    live = live._replace(log_probs=batch.ref_log_probs + tilt[:, None])

    def total(log_probs, params):
        found = objective.terms(live._replace(log_probs=log_probs), batch, CONTEXT, params)
        return jnp.sum(found["loss"].per_token * MASK)

    loss, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(live.log_probs, params)
    assert float(loss) < 1e-9
    for leaf in jax.tree.leaves(gradients):
        np.testing.assert_allclose(leaf, 0, atol=1e-5)
    assert float(total(live.log_probs + 0.1, params)) > 1e-2


@pytest.mark.parametrize("importance", TREATMENTS)
def test_every_treatment_is_as_its_source_has_it(importance):
    options = {} if importance in ("unclipped", "capped") else {"low": 0.1, "high": 0.15}
    if importance not in ("clipped", "unclipped"):
        options["cap"] = 1.1
    settings = Flowrl(beta=BETA, importance=importance, log_z="offline", **options)
    objective, live, batch = case(settings)
    log_z = np.asarray(batch.own["objective"]["log_z"])
    found = objective.terms(live, batch, CONTEXT, None)
    new, old = row_means(live.log_probs), row_means(batch.old_log_probs)
    product, geometric = np.exp((new - old) * MASK.sum(1)), np.exp(new - old)
    weight = np.minimum(product, 1.1)
    if importance == "clipped":
        weight = np.clip(product, 0.9, 1.15)
    elif importance == "unclipped":
        weight = product
    elif importance == "tis_clip":
        sampler = np.minimum(
            np.exp(row_means(batch.old_log_probs - batch.behaviour_log_probs)), 1.1
        )
        weight = np.clip(geometric, 0.9, 1.15) * sampler
        assert objective.needs == {"reference", "groups", "behaviour"}
    clamped = np.clip(new, old + math.log(0.9), old + math.log(1.15))
    if importance == "gspo_selection":
        worse = -SCALED * np.clip(geometric, 0.9, 1.15) > -SCALED * geometric
        clamped = np.where(worse, clamped, new)
    elif importance == "dapo_clip":
        ratio = np.exp(live.log_probs - batch.old_log_probs)
        r = SCALED[:, None]
        worse = row_means((-r * np.clip(ratio, 0.9, 1.15) > -r * ratio).astype(float)) > 0.5
        clamped = np.where(worse, clamped, new)
    elif importance != "clip_only":
        clamped = new
    delta = log_z + clamped - BETA * SCALED - row_means(batch.ref_log_probs)
    np.testing.assert_allclose(
        found["loss"].per_token[:, 0][THERE], (weight * delta**2)[THERE], rtol=2e-3, atol=1e-5
    )
    np.testing.assert_allclose(found["importance"].per_token[:, 0], weight, rtol=1e-4)
    assert np.any(np.abs(weight - product) > 1e-3) or importance == "unclipped"


def test_an_offline_log_z_needs_no_network():
    objective, _, batch = case(Flowrl(beta=BETA, log_z="offline"))
    assert objective.init is None and objective.needs == {"reference", "groups"}
    inputs = (batch.ref_log_probs, ROLLOUT.log_probs, SCALED.astype(np.float32), MASK, 2)
    expected = ops.flowrl_log_z(*inputs, beta=BETA)
    np.testing.assert_allclose(batch.own["objective"]["log_z"], expected, rtol=1e-5)
    np.testing.assert_allclose(batch.own["objective"]["rewards"], SCALED, rtol=1e-4)


def test_a_prompt_without_tokens_has_a_finite_log_z():
    network = Partition()
    hidden = np.full((1, 2, D), np.nan, np.float32)
    params = network.init(jax.random.key(0), hidden, np.zeros((1, 2)))
    found = network.apply(nn.unbox(params), hidden, np.zeros((1, 2)))
    np.testing.assert_array_equal(found, [0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0; it must be above 0"),
        ({"importance": "none"}, "importance is 'none'; it must be one of clipped, unclipped"),
        ({"log_z": "group"}, "log_z is 'group'; it must be one of network, offline"),
        ({"low": 1.0}, "low is 1.0; it must be at least 0 and below 1"),
        ({"high": -0.1}, "high is -0.1"),
        ({"importance": "capped", "cap": 0.0}, "cap is 0.0; it must be above 0"),
        ({"cap": 5.0}, "cap is 5.0; importance is 'clipped'"),
        ({"importance": "capped", "low": 0.1}, "low is 0.1; importance is 'capped'"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Flowrl(**options)
