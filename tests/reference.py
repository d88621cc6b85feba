"""Plain-numpy loops, one element at a time in float64, that the ops are compared with."""

import math

import numpy as np


def random_mask(rng, batch, time):
    """0/1 mask with holes: row 0 empty, row 1 full, row 2 a single token, the rest random."""
    mask = (rng.random((batch, time)) < 0.6).astype(np.float32)
    mask[0] = 0
    mask[1] = 1
    mask[2] = 0
    mask[2, time // 2] = 1
    return mask


def with_junk(x, mask, junk=np.nan):
    """`x` with `junk` outside the mask."""
    return np.where(mask > 0, x, junk).astype(np.float32)


def valid_elements(x, mask):
    return [float(v) for v, m in zip(np.ravel(x), np.ravel(mask), strict=True) if m > 0]


def masked_mean(x, mask):
    kept = valid_elements(x, mask)
    return sum(kept) / len(kept) if kept else 0.0


def masked_var(x, mask):
    kept = valid_elements(x, mask)
    if len(kept) < 2:
        return 0.0
    mean = sum(kept) / len(kept)
    return sum((v - mean) ** 2 for v in kept) / (len(kept) - 1)


def masked_whiten(x, mask):
    mean, var = masked_mean(x, mask), masked_var(x, mask)
    out = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        if mask[index] > 0:
            out[index] = (x[index] - mean) / math.sqrt(var + 1e-8)
    return out


def aggregate(x, mask, mode):
    rows = [valid_elements(r, m) for r, m in zip(x, mask, strict=True)]
    if mode == "sequence_mean":
        rows = [[sum(r) / len(r)] for r in rows if r]
    if mode == "constant_length":
        rows = [[sum(r) / mask.shape[1]] for r in rows if r]
    kept = [v for r in rows for v in r]
    return sum(kept) / len(kept) if kept else 0.0


def last_valid(mask):
    out = np.zeros(mask.shape)
    for b, row in enumerate(mask):
        valid = [i for i, m in enumerate(row) if m > 0]
        if valid:
            out[b, valid[-1]] = 1
    return out


def gae(rewards, values, mask, discount, lambda_, final_values=None):
    """Cuts the masked tokens out, sums discounted temporal differences forwards, puts them back."""
    batch, time = rewards.shape
    lambda_ = np.broadcast_to(lambda_, (batch,))
    advantages, returns = np.zeros((batch, time)), np.zeros((batch, time))
    for b in range(batch):
        kept = [i for i in range(time) if mask[b, i] > 0]
        end = 0.0 if final_values is None else float(final_values[b])
        v = [float(values[b, i]) for i in kept] + [end]
        r = [float(rewards[b, i]) for i in kept]
        deltas = [r[k] + discount * v[k + 1] - v[k] for k in range(len(kept))]
        for k, i in enumerate(kept):
            advantages[b, i] = sum(
                (discount * float(lambda_[b])) ** (n - k) * deltas[n] for n in range(k, len(kept))
            )
            returns[b, i] = advantages[b, i] + v[k]
    return advantages, returns


def tail_aware_weights(returns, quantile, mask, temperature, tail, side):
    """Gates of valid tokens over their mean, then clipped."""
    gates = {}
    for index in np.ndindex(mask.shape):
        if mask[index] > 0:
            excess = float(returns[index]) - float(quantile[index])
            excess = excess if side == "upper" else -excess
            gates[index] = 1.0 / (1.0 + math.exp(-excess / temperature)) / tail
    out = np.zeros(mask.shape)
    for index, gate in gates.items():
        out[index] = min(max(gate * len(gates) / sum(gates.values()), 0.1), 10.0)
    return out


def group_relative(rewards, group_size, normalize):
    out = []
    for start in range(0, len(rewards), group_size):
        group = [float(r) for r in rewards[start : start + group_size]]
        mean = sum(group) / group_size
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / (group_size - 1))
        out += [(r - mean) / (std + 1e-6) if normalize else r - mean for r in group]
    return np.array(out)


def rloo(rewards, group_size):
    out = []
    for start in range(0, len(rewards), group_size):
        group = [float(r) for r in rewards[start : start + group_size]]
        for k, r in enumerate(group):
            others = group[:k] + group[k + 1 :]
            out.append(r - sum(others) / len(others))
    return np.array(out)


def token_log_probs(logits, tokens, temperature):
    out = np.zeros(tokens.shape)
    for b, i in np.ndindex(tokens.shape):
        scaled = [float(x) / temperature for x in logits[b, i]]
        top = max(scaled)
        out[b, i] = scaled[tokens[b, i]] - top - math.log(sum(math.exp(x - top) for x in scaled))
    return out


def entropy(logits):
    out = np.zeros(logits.shape[:-1])
    for index in np.ndindex(out.shape):
        top = max(logits[index])
        weights = [math.exp(float(x) - top) for x in logits[index]]
        probabilities = [w / sum(weights) for w in weights]
        out[index] = -sum(p * math.log(p) for p in probabilities if p > 0)
    return out


def ppo_clip(log_probs, old, advantages, clip_low, clip_high, dual_clip):
    out = np.zeros(log_probs.shape)
    for index in np.ndindex(out.shape):
        ratio = math.exp(log_probs[index] - old[index])
        advantage = float(advantages[index])
        clipped = min(max(ratio, 1 - clip_low), 1 + clip_high)
        objective = min(ratio * advantage, clipped * advantage)
        if dual_clip is not None and advantage < 0:
            objective = max(objective, dual_clip * advantage)
        out[index] = -objective
    return out


def quantile_huber(quantiles, targets, taus, kappa):
    """One pair of vectors: quantiles [M], targets [K]."""
    total = 0.0
    for q, tau in zip(quantiles, taus, strict=True):
        for y in targets:
            u = float(y) - float(q)
            size = abs(u)
            if kappa > 0:
                size = 0.5 * u * u / kappa if size <= kappa else size - 0.5 * kappa
            total += abs(float(tau) - (u < 0)) * size
    return total / (len(quantiles) * len(targets))


def crps(samples, x):
    """One ensemble: samples [S]; all pairs, the equal ones included."""
    num = len(samples)
    spread = sum(abs(float(a) - float(b)) for a in samples for b in samples) / num**2
    return sum(abs(float(s) - float(x)) for s in samples) / num - 0.5 * spread


def cdf(quantiles, x):
    return sum(1.0 if q < x else 0.5 if q == x else 0.0 for q in quantiles) / len(quantiles)
