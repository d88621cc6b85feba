"""CISPO, DPPO and VCPO's loss: weights that are stopped, against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from policy_batch import CONTEXT, random_batch

from dfpo_jax import ops
from dfpo_jax.algorithms.importance import weight_metrics
from dfpo_jax.objectives import Cispo, Divergence, Flowrl, Objectives, Truncated


def sampled(seed=4):
    """A batch whose sampler was neither the old nor the reference policy: (Batch, Live)."""
    batch, live = random_batch(seed)
    noise = np.random.default_rng(seed + 1).normal(0, 0.5, batch.mask.shape)
    behaviour = (live.log_probs + noise).astype(np.float32)
    return batch.replace(behaviour_log_probs=np.minimum(behaviour, -0.01)), live


def losses(settings, live, batch):
    return settings.build().terms(live, batch, CONTEXT, None)


def gradient(settings, live, batch):
    def total(log_probs):
        return jnp.sum(
            losses(settings, live._replace(log_probs=log_probs), batch)["loss"].per_token
        )

    return np.asarray(jax.grad(total)(live.log_probs))


def test_cispo_bounds_the_weight_and_keeps_every_gradient():
    batch, live = random_batch()
    found = losses(Cispo(0.2, 0.3), live, batch)
    ratio = np.exp(live.log_probs - batch.old_log_probs)
    weight = np.clip(ratio, 0.8, 1.3) * batch.advantages * batch.importance
    np.testing.assert_allclose(found["loss"].per_token, -weight * live.log_probs, rtol=1e-4)
    np.testing.assert_allclose(gradient(Cispo(0.2, 0.3), live, batch), -weight, rtol=1e-4)
    assert 0 < np.mean(found["clip_fraction"].per_token) < 1
    # Without a lower bound only large weights are bounded.
    weight = np.minimum(ratio, 3) * batch.advantages * batch.importance
    np.testing.assert_allclose(gradient(Cispo(), live, batch), -weight, rtol=1e-4)


@pytest.mark.parametrize("kind", ops.DIVERGENCES)
@pytest.mark.parametrize("cap", [0.0, 1.3])
def test_dppo_is_measured_from_the_sampler(kind, cap):
    batch, live = sampled()
    settings = Divergence(kind, **{f"{kind}_threshold": 0.06}, cap=cap)
    found = losses(settings, live, batch)
    sampler, advantages = batch.behaviour_log_probs, batch.advantages
    kept = np.asarray(
        ops.divergence_mask(live.log_probs, sampler, advantages, threshold=0.06, divergence=kind)
    )
    weight = np.minimum(np.exp(live.log_probs - sampler), cap or np.inf) * kept * advantages
    np.testing.assert_allclose(found["loss"].per_token, -weight * live.log_probs, rtol=1e-4)
    np.testing.assert_allclose(gradient(settings, live, batch), -weight, rtol=1e-4)
    np.testing.assert_array_equal(found["mask_fraction"].per_token, 1 - kept)
    assert 0 < np.mean(kept) < 1 and settings.build().needs == {"behaviour"}
    # Neither the old policy nor weights of the sampler against it matter.
    other = batch.replace(old_log_probs=batch.old_log_probs - 1, importance=3 * batch.importance)
    np.testing.assert_array_equal(
        losses(settings, live, other)["loss"].per_token, found["loss"].per_token
    )


@pytest.mark.parametrize("kind", ["topk_tv", "topk_kl"])
def test_dppo_over_the_top_tokens_merges_the_rest(kind):
    """Against whole laws over a vocabulary of seven, of which the sampler returned three."""
    rng = np.random.default_rng(0)
    batch, live = random_batch()
    shape = batch.mask.shape
    pi, mu = rng.dirichlet(np.ones(7), (2, *shape))
    pi = 0.4 * pi + 0.6 * mu
    tokens = rng.integers(0, 7, shape)
    top = np.argsort(-mu, axis=-1)[..., :3]

    def of(law, indices):
        return np.log(np.take_along_axis(law, indices, axis=-1)).astype(np.float32)

    live = live._replace(log_probs=of(pi, tokens[..., None])[..., 0], top_log_probs=of(pi, top))
    batch = batch.replace(
        tokens=tokens,
        behaviour_log_probs=of(mu, tokens[..., None])[..., 0],
        top_tokens=top,
        top_log_probs=of(mu, top),
    )
    threshold = 0.12 if kind == "topk_tv" else 0.06
    settings = Divergence(kind, **{f"{kind[-2:]}_threshold": threshold}, top=3)
    objective = settings.build()
    assert (objective.top, objective.needs) == (3, {"behaviour"})
    masked = np.zeros(shape)
    for b, i in np.ndindex(*shape):
        kept = sorted({*top[b, i], tokens[b, i]})
        p, q = (np.append(law[b, i, kept], 1 - law[b, i, kept].sum()) for law in (mu, pi))
        far = 0.5 * np.abs(p - q).sum() if kind == "topk_tv" else np.sum(p * np.log(p / q))
        sign = np.sign(batch.advantages[b, i])
        moved = np.sign(pi[b, i, tokens[b, i]] - mu[b, i, tokens[b, i]])
        masked[b, i] = far > threshold and sign == moved
    found = losses(settings, live, batch)
    np.testing.assert_array_equal(found["mask_fraction"].per_token, masked)
    assert 0.1 < masked.mean() < 0.9


def test_nothing_is_masked_where_the_policy_is_the_sampler():
    batch, live = sampled()
    batch = batch.replace(behaviour_log_probs=live.log_probs)
    for settings in (Divergence(), Divergence("kl")):
        assert not np.any(losses(settings, live, batch)["mask_fraction"].per_token)
        np.testing.assert_allclose(gradient(settings, live, batch), -batch.advantages, rtol=1e-6)


def test_vcpo_truncates_the_weight_of_a_response():
    batch, live = sampled(5)
    settings = Truncated(1.2)
    found = losses(settings, live, batch)
    logs = live.log_probs - batch.behaviour_log_probs
    weights = np.array(
        [np.exp(sum(reference.valid_elements(*row))) for row in zip(logs, batch.mask, strict=True)]
    )
    gain = np.minimum(weights, 1.2)[:, None] * batch.advantages
    np.testing.assert_allclose(found["loss"].per_token, -gain * live.log_probs, rtol=1e-4)
    np.testing.assert_allclose(gradient(settings, live, batch), -gain, rtol=1e-4)
    assert weights.max() > 1.2 > weights.min()
    # The metrics are of weights that are not truncated, over responses with a token.
    metrics = weight_metrics(live.log_probs, batch)
    reduce, count = ops.aggregate_weights(batch.mask, "sequence_mean")
    there, means = batch.mask.any(axis=1), {}
    for name, power in (("weight", 1), ("squared_weight", 2)):
        loss = metrics[name]
        assert (loss.weight, loss.aggregation) == (0.0, "sequence_mean")
        means[name] = float(jnp.sum(loss.per_token * reduce) / count)
        assert means[name] == pytest.approx(np.mean(weights[there] ** power), rel=1e-4)
    share = float(ops.effective_sample_size(np.log(weights[there])))
    assert means["weight"] ** 2 / means["squared_weight"] == pytest.approx(share, rel=1e-4)
    assert Truncated().cap == 8.0 and settings.build().needs == {"behaviour"}


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (Cispo, {"low": 1.5}, "low is 1.5"),
        (Cispo, {"high": -1.0}, "high is -1.0"),
        (Divergence, {"divergence": "js"}, "divergence is 'js'; it must be one of tv, kl, topk_tv"),
        (Divergence, {"tv_threshold": 1.5}, "tv_threshold is 1.5"),
        (Divergence, {"cap": -1.0}, "cap is -1.0"),
        (Divergence, {"kl_threshold": 0.1}, "kl_threshold is 0.1; divergence is 'tv'"),
        (Divergence, {"divergence": "topk_kl", "tv_threshold": 0.1}, "tv_threshold is 0.1; diverg"),
        (Divergence, {"divergence": "kl", "top": 5}, "top is 5; divergence is 'kl'"),
        (Divergence, {"divergence": "topk_tv", "top": 0}, "top is 0"),
        (Truncated, {"cap": 0.0}, "cap is 0.0; it must be above 0"),
    ],
)
def test_bad_settings_are_named(settings, options, message):
    with pytest.raises(ValueError, match=message):
        settings(**options)


@pytest.mark.parametrize("part", [Divergence, Truncated, Flowrl])
def test_what_starts_at_the_sampler_takes_no_second_weight(part):
    name = part.__name__.lower()
    with pytest.raises(ValueError, match=f"importance_cap is 2.0; name is '{name}'"):
        Objectives(name, importance_cap=2.0)
    assert Objectives("cispo", importance_cap=2.0).importance_cap == 2.0
