"""A token MDP and the exact return distributions of its states.

An episode is LENGTH tokens out of TOKENS; its reward, after the last token, is a coin of known
odds (flips included) plus Gaussian noise. Behind every prefix the return is therefore a mixture of
two Gaussians, at 0 and at 1, whose weight is found by enumerating the completions.

With two scales, the first token also decides how large the reward is: of a reward y as above it
makes 1/2 + scale (2 y - 1). The scale 1/2 leaves y as it is.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dfpo_jax.types import Array

LENGTH, TOKENS, QUANTILES, FINE = 6, 3, 32, 512
SCALES = (0.5, 20.0)


@struct.dataclass
class TokenMDP:
    """scores, log_policy: [LENGTH, TOKENS]; flip and noise as the flags.

    scales: [TOKENS] of the rewards, by the first token; None for 1/2.
    """

    scores: Array
    log_policy: Array
    flip: float
    noise: float
    scales: Array | None = None


def make_mdp(
    key: Array, *, policy: str, flip: float, noise: float, two_scales: bool = False
) -> TokenMDP:
    """Random scores and a "uniform" or "random" policy.

    With `two_scales` the first token leads with probability 1/2 to rewards of each of `SCALES`.
    """
    score_key, policy_key = jax.random.split(key)
    logits = jax.random.normal(policy_key, (LENGTH, TOKENS)) * (policy == "random")
    scores = jax.random.normal(score_key, (LENGTH, TOKENS))
    if not two_scales:
        return TokenMDP(scores, jax.nn.log_softmax(logits), flip, noise)
    low = jnp.arange(TOKENS) < TOKENS // 2
    first = jnp.where(low, 0.5 / low.sum(), 0.5 / (~low).sum())
    log_policy = jax.nn.log_softmax(logits).at[0].set(jnp.log(first))
    return TokenMDP(scores, log_policy, flip, noise, jnp.where(low, *SCALES))


def sample_episodes(mdp: TokenMDP, key: Array, batch: int) -> tuple[Array, Array]:
    """Tokens [B, LENGTH] and rewards [B]."""
    token_key, coin_key, noise_key = jax.random.split(key, 3)
    logits = jnp.broadcast_to(mdp.log_policy, (batch, LENGTH, TOKENS))
    tokens = jax.random.categorical(token_key, logits)
    success = jax.random.uniform(coin_key, (batch,)) < success_probability(mdp, tokens)
    noise = mdp.noise * jax.random.normal(noise_key, (batch,))
    rewards = success.astype(jnp.float32) + noise
    if mdp.scales is not None:
        rewards = 0.5 + mdp.scales[tokens[:, 0]] * (2.0 * rewards - 1.0)
    return tokens, rewards


def success_probability(mdp: TokenMDP, tokens: Array) -> Array:
    """Probability [...] that whole episodes [..., LENGTH] end around 1, flips included."""
    scores = jnp.einsum("...lv,lv->...", jax.nn.one_hot(tokens, TOKENS), mdp.scores)
    return mdp.flip + (1.0 - 2.0 * mdp.flip) * jax.nn.sigmoid(scores)


def features(tokens: Array) -> Array:
    """One-hot history [B, LENGTH + 1, LENGTH * TOKENS] of the prefixes of tokens [B, LENGTH]."""
    history = jax.nn.one_hot(tokens, TOKENS)[:, None]
    seen = jnp.tril(jnp.ones((LENGTH + 1, LENGTH)), -1)[None, :, :, None]
    return (history * seen).reshape(tokens.shape[0], LENGTH + 1, LENGTH * TOKENS)


@struct.dataclass
class Truth:
    """Evaluated prefixes and their exact returns.

    Attributes:
      tokens: [N, LENGTH], arbitrary behind the prefix.
      depth: [N] length of the prefix.
      weight: [N] mass of the Gaussian at 1; the one at 0 has the rest.
      quantiles, fine: [N, QUANTILES] and [N, FINE], at the levels of `ops.quantile_levels`, of y.
      cvar: [N] mean of the lowest 10 %.
    """

    tokens: Array
    depth: Array
    weight: Array
    quantiles: Array
    fine: Array
    cvar: Array


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Standard normal distribution function in float64."""
    return 0.5 * (1.0 + np.vectorize(math.erf)(np.asarray(x, np.float64) / math.sqrt(2.0)))


def mixture_cdf(x: np.ndarray, weight: np.ndarray, noise: float) -> np.ndarray:
    """Distribution function of (1 - weight) N(0, noise^2) + weight N(1, noise^2)."""
    return (1.0 - weight) * normal_cdf(x / noise) + weight * normal_cdf((x - 1.0) / noise)


def mixture_quantile(level: np.ndarray, weight: np.ndarray, noise: float) -> np.ndarray:
    """Its inverse, by bisection."""
    level, weight = np.broadcast_arrays(level, weight)
    low, high = np.full(level.shape, -8.0 * noise), np.full(level.shape, 1.0 + 8.0 * noise)
    for _ in range(50):
        middle = 0.5 * (low + high)
        below = mixture_cdf(middle, weight, noise) < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return 0.5 * (low + high)


def mixture_cvar(weight: np.ndarray, noise: float, alpha: float) -> np.ndarray:
    """Mean of its lowest `alpha`: int_{x < q} x dF / alpha, with int x dN closed."""
    quantile = mixture_quantile(np.full(weight.shape, alpha), weight, noise)

    def part(mean):
        z = (quantile - mean) / noise
        density = np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
        return mean * normal_cdf(z) - noise * density

    return ((1.0 - weight) * part(0.0) + weight * part(1.0)) / alpha


def by_scale(mdp: TokenMDP, truth: Truth) -> dict[str, tuple[np.ndarray, float]]:
    """Name -> (which states [N], scale of their rewards): all, or those of either scale.

    The root belongs to neither.
    """
    if mdp.scales is None:
        return {"": (np.ones(len(truth.depth), bool), 0.5)}
    scale = np.asarray(mdp.scales)[truth.tokens[:, 0]]
    return {f"scale {x:g}": ((truth.depth > 0) & (scale == x), x) for x in SCALES}


def make_truth(mdp: TokenMDP, rng: np.random.Generator) -> Truth:
    """The root, all 3 states of depth 1 and 5 random ones each at depths 2 to 4: 19 states."""
    grids = np.meshgrid(*[np.arange(TOKENS)] * LENGTH, indexing="ij")
    episodes = np.stack([grid.ravel() for grid in grids], axis=-1)
    chosen = np.take_along_axis(np.asarray(mdp.log_policy, np.float64).T, episodes, axis=0)
    mass = np.exp(chosen.sum(-1))
    success = np.asarray(success_probability(mdp, jnp.asarray(episodes)), np.float64)
    tokens, depth, weight = [], [], []
    for length, count in enumerate((1, 3, 5, 5, 5)):
        prefixes = np.unique(episodes[:, :length], axis=0)
        for prefix in prefixes[np.sort(rng.permutation(len(prefixes))[:count])]:
            completes = (episodes[:, :length] == prefix).all(-1)
            tokens.append(np.pad(prefix, (0, LENGTH - length)))
            depth.append(length)
            weight.append((mass * success)[completes].sum() / mass[completes].sum())
    weight = np.array(weight)
    quantiles, fine = (
        mixture_quantile((np.arange(m) + 0.5) / m, weight[:, None], mdp.noise)
        for m in (QUANTILES, FINE)
    )
    cvar = mixture_cvar(weight, mdp.noise, 0.1)
    return Truth(np.array(tokens), np.array(depth), weight, quantiles, fine, cvar)
