"""Plain-numpy loops and closed forms for the critic's targets, flows and risk measures."""

import itertools
import math
from statistics import NormalDist

import numpy as np

NORMAL = NormalDist()


# --- targets -------------------------------------------------------------------------------------


def gae_returns(rewards, values, mask, discount, lambda_, final_value=0.0):
    """Advantage plus value of one row of scalars by the textbook sums over valid tokens."""
    valid = [i for i in range(len(mask)) if mask[i]]
    following = ([values[i] for i in valid[1:]] + [final_value])[: len(valid)]
    deltas = [rewards[i] + discount * v - values[i] for i, v in zip(valid, following, strict=True)]
    out = np.zeros(len(mask))
    for n, i in enumerate(valid):
        advantage = sum((discount * lambda_) ** k * delta for k, delta in enumerate(deltas[n:]))
        out[i] = advantage + values[i]
    return out


def carry_back(out, mask):
    """Give positions in a gap the value of the next valid one; 0 after the last one."""
    carry = np.zeros_like(out[-1])
    filled = np.zeros_like(out)
    for i in reversed(range(len(mask))):
        carry = out[i] if mask[i] else carry
        filled[i] = carry
    return filled


def lambda_mixture(take, rewards, bootstrap, mask, discount, truncated):
    """Targets for given draws `take` [B, T, S] by stepping over valid tokens, last to first."""
    out = np.zeros(bootstrap.shape)
    for b, row in enumerate(mask):
        valid = [i for i in range(len(row)) if row[i]]
        for s in range(bootstrap.shape[2]):
            for n in reversed(range(len(valid))):
                i = valid[n]
                if n == len(valid) - 1:
                    future = bootstrap[b, i, s] if truncated[b] else 0.0
                elif take[b, i, s]:
                    future = out[b, valid[n + 1], s]
                else:
                    future = bootstrap[b, i, s]
                out[b, i, s] = rewards[b, i] + discount * future
        out[b] = carry_back(out[b], row)
    return out


def mixture_law(rewards, bootstrap, discount, lambda_, final=0.0):
    """Law of the first target of one full row: {value: probability} over all Bernoulli outcomes."""
    law = {}
    steps = len(rewards)
    for draws in itertools.product([0, 1], repeat=steps - 1):
        probability = math.prod(lambda_ if d else 1 - lambda_ for d in draws)
        value, factor = 0.0, 1.0
        for i in range(steps):
            value += factor * rewards[i]
            factor *= discount
            if i == steps - 1:
                value += factor * final
            elif not draws[i]:
                value += factor * bootstrap[i]
                break
        value = round(value, 4)
        law[value] = law.get(value, 0.0) + probability
    return law


# --- flows ---------------------------------------------------------------------------------------


def runge_kutta(field, z, t0, t1, num_steps, solver, first_step=1.0, clip=None):
    """One scalar trajectory, each method written out, clipped after each step."""
    shares = [first_step] + [1.0] * (num_steps - 1)
    t = t0
    for share in shares:
        h = (t1 - t0) * share / sum(shares)
        k1 = field(z, t)
        if solver == "euler":
            z = z + h * k1
        elif solver == "midpoint":
            z = z + h * field(z + h / 2 * k1, t + h / 2)
        elif solver == "heun":
            z = z + h / 2 * (k1 + field(z + h * k1, t + h))
        else:
            k2 = field(z + h / 2 * k1, t + h / 2)
            k3 = field(z + h / 2 * k2, t + h / 2)
            k4 = field(z + h * k3, t + h)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        t = t + h
        if clip is not None:
            z = min(max(z, clip[0]), clip[1])
    return z


def gaussian_field(z, t, mean, std):
    """Optimal field from N(0, 1) to N(mean, std^2) under the independent coupling.

    z_t = (1-t) eps + t y is Gaussian; v* = E[y - eps | z_t] is the linear regression on it.
    """
    variance = (1 - t) ** 2 + (t * std) ** 2
    return mean + (t * std**2 - (1 - t)) / variance * (z - t * mean)


def by_token(loss, fields, arrays, *options):
    """[B, T] of a loss below whose velocities `field(b, i)` differ from token to token."""
    batch, time = arrays[0].shape[:2]
    out = np.zeros((batch, time))
    for b, i in itertools.product(range(batch), range(time)):
        velocities = [field(b, i) for field in fields]
        out[b, i] = loss(*velocities, *(x[b : b + 1, i : i + 1] for x in arrays), *options)[0, 0]
    return out


def anchor(velocity, targets, noise, times):
    """[B, T] loss for a scalar velocity(z, t, d)."""
    batch, time, samples = targets.shape
    out = np.zeros((batch, time))
    for b, i, s in itertools.product(range(batch), range(time), range(samples)):
        y, eps, t = targets[b, i, s], noise[b, i, s], times[b, i, s]
        error = velocity((1 - t) * eps + t * y, t, 0.0) - (y - eps)
        out[b, i] += error**2 / samples
    return out


def distributional_cfm(
    velocity, following, rewards, noise, times, discount, steps, solver, base, clip=None
):
    """[B, T] loss for scalar velocities."""
    batch, time, samples = noise.shape
    out = np.zeros((batch, time))
    for b, i, s in itertools.product(range(batch), range(time), range(samples)):
        r, eps, t = rewards[b, i], noise[b, i, s], times[b, i, s]
        path = (lambda z, u: following(z, u, 0.0), eps, 0.0, t)
        after = runge_kutta(*path, steps, solver, clip=clip)
        slope = following(after, t, 0.0)
        if base == "keep":
            z = t * r + discount * after + (1 - discount) * (1 - t) * eps
            target = r + discount * slope - (1 - discount) * eps
        else:
            z = r + discount * after
            target = discount * slope
        out[b, i] += (velocity(z, t, 0.0) - target) ** 2 / samples
    return out


def geometric_consistency(
    velocity, frozen, noise, times, mode, steps, solver, first_step=1.0, clip=None
):
    """[B, T] loss for scalar velocities."""
    batch, time, samples = noise.shape
    out = np.zeros((batch, time))
    for b, i, s in itertools.product(range(batch), range(time), range(samples)):
        eps, t = noise[b, i, s], times[b, i, s]
        horizon = t if mode == "straight" else 1.0
        path = (lambda z, u: frozen(z, u, 0.0), eps, 0.0, horizon)
        end = runge_kutta(*path, steps, solver, first_step, clip)
        if mode == "map":
            error = velocity(eps, 0.0, 1.0) - (end - eps)
        elif mode == "reflow":
            error = velocity((1 - t) * eps + t * end, t, 0.0) - (end - eps)
        else:
            error = velocity(eps, 0.0, 0.0) - velocity(end, t, 0.0)
        out[b, i] += error**2 / samples
    return out


# --- risk ----------------------------------------------------------------------------------------


def lower_tail(values, level):
    """(value, mass) pairs of the first `level` of the mass of equally heavy entries."""
    left, pairs = level * len(values), []
    for value in values:
        mass = min(1.0, max(left, 0.0))
        left -= mass
        pairs.append((float(value), mass))
    return pairs


def tail_mean(values, level, upper=False):
    pairs = lower_tail(values[::-1] if upper else values, level)
    return sum(v * m for v, m in pairs) / sum(m for _, m in pairs)


def tail_variance(values, level, upper=False):
    pairs = lower_tail(values[::-1] if upper else values, level)
    mean = tail_mean(values, level, upper)
    return sum((v - mean) ** 2 * m for v, m in pairs) / sum(m for _, m in pairs)


def tail_shape(q, q_target, alpha, beta):
    low = tail_variance(q, alpha) - tail_variance(q_target, alpha)
    high = tail_variance(q_target, beta, upper=True) - tail_variance(q, beta, upper=True)
    return max(low, 0.0) + max(high, 0.0)


def tail_curvature(q, alpha, beta):
    bend = [q[j + 1] - 2 * q[j] + q[j - 1] for j in range(1, len(q) - 1)]
    return max(tail_mean(bend, alpha), 0.0) + max(-tail_mean(bend, beta, upper=True), 0.0)


def risk_losses(q, goal, alpha, beta):
    """Conditional risk and tail shape of one state's quantiles, by name."""
    low = [tail_mean(x, alpha) for x in (q, goal)]
    high = [tail_mean(x, beta, upper=True) for x in (q, goal)]
    return {
        "cvar": (low[0] - low[1]) ** 2,
        "upper_gain": (high[0] - high[1]) ** 2,
        "mean_shift": max(goal.mean() - q.mean(), 0.0),
        "tail_shape": tail_shape(q, goal, alpha, beta),
        "tail_curvature": tail_curvature(q, alpha, beta),
    }


def wang(q, shift):
    def distort(u):
        return u if u in (0.0, 1.0) else NORMAL.cdf(NORMAL.inv_cdf(u) + shift)

    num = len(q)
    return sum((distort((j + 1) / num) - distort(j / num)) * float(q[j]) for j in range(num))
