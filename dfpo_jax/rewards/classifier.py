"""A small classifier of responses: its fit, its accuracy, and the corruption that lowers it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

_STEPS, _RATE, _DECAY = 100, 1e-2, 0.1
_LEAST = 1e-6  # deviation of a feature that does not vary
_HALVINGS = 8


def fit(features: np.ndarray, labels: np.ndarray, hidden: int, seed: int) -> dict[str, Any]:
    """Logistic regression on one hidden layer of tanh, by AdamW on all responses at once.

    Right and wrong responses weigh the same in the loss, so that 0 is the logit at which both are
    equally likely if they are equally frequent.

    Args:
      features: [B, F], standardised inside.
      labels: [B] bool.
      hidden: units, >= 1.
      seed: of the first weights.

    Returns:
      Parameters for `logits`, as JSON gives them back: float32 numbers in lists.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = np.maximum(features.std(axis=0, dtype=np.float64), _LEAST)
    standard = ((features - mean) / deviation).astype(np.float32)
    share = np.clip(labels.mean(), 1.0 / len(labels), 1.0 - 1.0 / len(labels))
    weights = np.where(labels, 0.5 / share, 0.5 / (1.0 - share)).astype(np.float32)
    key = jax.random.key(seed)
    layers = _fit(standard, labels.astype(np.float32), weights, key, hidden)
    parameters = {"mean": mean, "deviation": deviation, **layers}
    return {name: np.asarray(x, np.float32).tolist() for name, x in parameters.items()}


def logits(parameters: dict[str, Any], features: np.ndarray) -> np.ndarray:
    """[B] float32 of features [B, F]; above 0 where a response is rather right."""
    of = {name: np.asarray(x, np.float32) for name, x in parameters.items()}
    standard = (features - of["mean"]) / of["deviation"]
    inner = np.tanh(standard @ of["in"] + of["in_bias"])
    return (inner @ of["out"] + of["out_bias"]).astype(np.float32)


@jax.jit(static_argnames="hidden")
def _fit(features, labels, weights, key, hidden):
    width = features.shape[1]
    first = {
        "in": jax.random.normal(key, (width, hidden)) / np.sqrt(width),
        "in_bias": jnp.zeros(hidden),
        "out": jnp.zeros(hidden),
        "out_bias": jnp.zeros(()),
    }
    optimizer = optax.adamw(_RATE, weight_decay=_DECAY)

    def loss(layers):
        inner = jnp.tanh(features @ layers["in"] + layers["in_bias"][None])
        found = inner @ layers["out"] + layers["out_bias"]
        return jnp.mean(weights * optax.sigmoid_binary_cross_entropy(found, labels))

    def step(carry, _):
        layers, moments = carry
        updates, moments = optimizer.update(jax.grad(loss)(layers), moments, layers)
        return (optax.apply_updates(layers, updates), moments), None

    (layers, _), _ = jax.lax.scan(step, (first, optimizer.init(first)), length=_STEPS)
    return layers


def balanced_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the shares of right responses with a logit above 0, and of wrong ones without."""
    return float(0.5 * (np.mean(logits[labels] > 0) + np.mean(logits[~labels] <= 0)))


def area(logits: np.ndarray, labels: np.ndarray) -> float:
    """AUC: how often a right response has the larger logit than a wrong one; ties count half."""
    wrong = np.sort(logits[~labels])
    below = np.searchsorted(wrong, logits[labels], "left")
    up_to = np.searchsorted(wrong, logits[labels], "right")
    return float(np.mean(0.5 * (below + up_to)) / len(wrong))


def bisect(
    accuracy_at: Callable[[float], float], target: float, close: float = 0.0
) -> tuple[float, float]:
    """The corruption rate, from 0 to 1/2, at which a classifier has an accuracy.

    Args:
      accuracy_at: rate -> accuracy; it falls with the rate, but for chance.
      target: accuracy.
      close: distance from the target at which no further rate is tried.

    Returns:
      Of the rates that were tried, 0 and at most eight more, the one whose accuracy is closest to
      the target, and the accuracy; of equals the lowest rate.
    """
    tried = {0.0: accuracy_at(0.0)}
    low, high = 0.0, 0.5
    for _ in range(_HALVINGS if tried[0.0] > target else 0):
        if min(abs(found - target) for found in tried.values()) <= close:
            break
        middle = 0.5 * (low + high)
        tried[middle] = accuracy_at(middle)
        low, high = (middle, high) if tried[middle] > target else (low, middle)
    return min(tried.items(), key=lambda one: (abs(one[1] - target), one[0]))
