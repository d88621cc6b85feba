"""How well a predicted law describes the returns that really follow a state; numpy only.

Shapes: N states, C continuations of each, M quantiles.
"""

import numpy as np

_BINS = 10


def ceiling(returns: np.ndarray) -> float:
    """The largest explained variance any function of the states can have, estimated.

    1 - E[Var(G | s)] / Var(G); the variance within a state is estimated without bias from its C
    continuations, so that a state whose returns are all alike needs no correction. 0 where all
    returns are alike.

    Args:
      returns: [N, C], C >= 2.
    """
    total = returns.var()
    return float(1.0 - returns.var(axis=1, ddof=1).mean() / total) if total > 0 else 0.0


def explained(means: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var(G - V) / Var(G) over all states and continuations; 0 where all returns are alike.

    Args:
      means: [N] predicted.
      returns: [N, C].
    """
    total = returns.var()
    return float(1.0 - (returns - means[:, None]).var() / total) if total > 0 else 0.0


def crps(law: np.ndarray, returns: np.ndarray) -> float:
    """Mean continuous ranked probability score of M equally likely points.

    E|X - g| - E|X - X'| / 2 with X, X' among the points (Gneiting and Raftery 2007, equation 21).

    Args:
      law: [N, M] sorted.
      returns: [N, C].
    """
    count = law.shape[1]
    near = np.abs(law[:, None, :] - returns[:, :, None]).mean()
    ranks = 2.0 * np.arange(1, count + 1) - count - 1.0
    spread = (law * ranks).sum(axis=1).mean() * 2.0 / count**2  # E|X - X'|
    return float(near - spread / 2.0)


def wasserstein1(law: np.ndarray, returns: np.ndarray) -> float:
    """Mean W1 distance between predicted law and returns, both as step functions of the level.

    Args:
      law: [N, M] sorted.
      returns: [N, C].
    """
    first, second = law.shape[1], returns.shape[1]
    edges = np.unique(
        np.concatenate([np.arange(first + 1) / first, np.arange(second + 1) / second])
    )
    middle = (edges[1:] + edges[:-1]) / 2.0
    q = law[:, (middle * first).astype(int)]
    g = np.sort(returns, axis=1)[:, (middle * second).astype(int)]
    return float((np.abs(q - g) * np.diff(edges)).sum(axis=1).mean())


def coverage(law: np.ndarray, returns: np.ndarray, low: float = 0.05, high: float = 0.95) -> float:
    """Share of returns between two predicted quantiles, both included."""
    ends = np.quantile(law, [low, high], axis=1)[:, :, None]
    slack = 1e-6 * max(1.0, float(np.abs(returns).max()))
    return float(((ends[0] - slack <= returns) & (returns <= ends[1] + slack)).mean())


def calibration_error(means: np.ndarray, returns: np.ndarray) -> float:
    """Expected calibration error of the means, in reward units (Naeini et al. 2015, with values).

    States lie in ten bins of equally many by their predicted mean; the error is the mean over
    states of |predicted mean of the bin - observed mean of the bin|.

    Args:
      means: [N] predicted.
      returns: [N, C].
    """
    bins = np.array_split(np.argsort(means, kind="stable"), min(_BINS, len(means)))
    errors = [abs(means[b].mean() - returns[b].mean()) * len(b) for b in bins]
    return float(np.sum(errors) / len(means))


def scores(law: np.ndarray, returns: np.ndarray) -> dict[str, float]:
    """Every figure of a set of states.

    Args:
      law: [N, M] sorted quantiles, in the units of the returns; M = 1 where only the mean is known.
      returns: [N, C].
    """
    means, top = law.mean(axis=1), ceiling(returns)
    found = explained(means, returns)
    return {
        "explained": found,
        "ceiling": top,
        "share": found / top if top > 0 else 0.0,
        "crps": crps(law, returns),
        "w1": wasserstein1(law, returns),
        "coverage": coverage(law, returns),
        "ece": calibration_error(means, returns),
        "spread": float(means.std()),
    }
