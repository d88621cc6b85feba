"""DFPO's critic as pure functions of velocities: targets, losses and inference.

Nothing here knows a network: a velocity is a function (z, t, d) of [B, T, S] arrays, closed over
the states it belongs to. `dfpo.py` closes it over a transformer's hidden states,
`experiments/token_mdp.py` over a table of states.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.algorithms.base import check_choice, check_interval
from dfpo_jax.models import value_flow
from dfpo_jax.types import Array

INFERENCE = ("one_step", "ode")
TARGET_MODES = ("mixture", "average")
RISK_TARGETS = ("flow", "returns")
RISK_WEIGHTS = (
    "cvar_weight",
    "upper_gain_weight",
    "mean_shift_weight",
    "tail_shape_weight",
    "tail_curvature_weight",
)


@dataclass(frozen=True)
class FlowCriticConfig:
    """Losses and inference of the value flow (algorithm sections 3 to 5).

    Attributes:
      num_samples: S, noise/time pairs per token in every loss, and samples per target.
      num_steps: K, solver steps of the frozen field.
      solver: "euler", "midpoint", "heun" or "rk4".
      first_step: length of the first of these steps over that of each other one.
      value_bound: 0, or the largest size of a return and of a state of the flow, in normalised
        units: targets and solver steps are clipped to it, so that neither an outlier nor an
        unstable step carries the critic away.
      num_quantiles: M, quantiles by which a state's distribution is read.
      inference: "one_step" reads the flow map, "ode" integrates K steps.
      target_mode: "mixture" (law of the lambda-mixture) or "average" (quantile by quantile).
      anchor_weight: bootstrapped anchor.
      dcfm_weight: distributional flow matching between successive states.
      dcfm_base: "keep" or "shift".
      geometry: "map", "reflow" or "straight".
      geometry_weight: geometric consistency.
      cvar_weight, upper_gain_weight, mean_shift_weight, tail_shape_weight, tail_curvature_weight:
        conditional risk and tail shape of the one-step quantiles.
      risk_targets: what they are compared with: "flow", the frozen field's K-step quantiles, or
        "returns", the sorted target samples.
      tail_alpha, tail_beta: mass of the lower and the upper tail.
      uncertainty: weight on anchor and flow matching: "none", "emphasize" or "discount".
      uncertainty_temperature: its temperature, in normalised value units.

    Raises:
      ValueError: a value outside its range, named with what is allowed.
    """

    num_samples: int = 8
    num_steps: int = 4
    solver: str = "midpoint"
    first_step: float = 2.0
    value_bound: float = 0.0
    num_quantiles: int = 32
    inference: str = "one_step"
    target_mode: str = "mixture"
    anchor_weight: float = 1.0
    dcfm_weight: float = 1.0
    dcfm_base: str = "keep"
    geometry: str = "map"
    geometry_weight: float = 1.0
    cvar_weight: float = 0.0
    upper_gain_weight: float = 0.0
    mean_shift_weight: float = 0.0
    tail_shape_weight: float = 0.0
    tail_curvature_weight: float = 0.0
    risk_targets: str = "flow"
    tail_alpha: float = 0.1
    tail_beta: float = 0.1
    uncertainty: str = "none"
    uncertainty_temperature: float = 1.0

    def __post_init__(self):
        """Check ranges and names."""
        check_interval(self, "num_samples", "num_steps", low=1)
        check_interval(self, "num_quantiles", low=3)
        check_choice(self, "solver", tuple(sorted(ops.SOLVERS)))
        check_choice(self, "inference", INFERENCE)
        check_choice(self, "target_mode", TARGET_MODES)
        check_choice(self, "dcfm_base", ("keep", "shift"))
        check_choice(self, "geometry", ("map", "reflow", "straight"))
        check_choice(self, "risk_targets", RISK_TARGETS)
        check_choice(self, "uncertainty", ("none", "emphasize", "discount"))
        weights = [name for name in self.__dataclass_fields__ if name.endswith("_weight")]
        check_interval(self, *weights, "value_bound", low=0.0)
        for name in ("first_step", "tail_alpha", "tail_beta", "uncertainty_temperature"):
            if getattr(self, name) <= 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        check_interval(self, "tail_alpha", "tail_beta", low=0.0, high=1.0)
        if self.inference == "one_step" and self.geometry_weight * (self.geometry == "map") == 0:
            raise ValueError(
                'inference is "one_step", which reads the flow map; that needs geometry "map" with '
                f"a positive geometry_weight (now {self.geometry!r}, {self.geometry_weight})"
            )

    @property
    def clip(self) -> tuple[float, float] | None:
        """The interval of `value_bound`, or None."""
        return (-self.value_bound, self.value_bound) if self.value_bound > 0 else None

    @property
    def uses_risk(self) -> bool:
        """Whether any conditional-risk or tail term has a weight."""
        return any(getattr(self, name) > 0 for name in RISK_WEIGHTS)


def _instantaneous(velocity):
    return lambda z, t: velocity(z, t, jnp.zeros((), z.dtype))


def flow_samples(config: FlowCriticConfig, velocity, noise: Array) -> Array:
    """Samples (or quantiles, for an ordered grid of noise) by the configured inference."""
    if config.inference == "one_step":
        return _clipped(config, value_flow.one_step(velocity, noise))
    return integrated(config, velocity, noise)


def _clipped(config: FlowCriticConfig, values: Array) -> Array:
    return values if config.clip is None else jnp.clip(values, *config.clip)


def integrated(config: FlowCriticConfig, velocity, noise: Array) -> Array:
    """z_1 of the configured K solver steps, whatever the inference."""
    return value_flow.samples(
        velocity,
        noise,
        num_steps=config.num_steps,
        solver=config.solver,
        first_step=config.first_step,
        clip=config.clip,
    )


def state_quantiles(config: FlowCriticConfig, velocity, shape: tuple[int, int]) -> Array:
    """Quantiles [*shape, M] of the return at every state, by the configured inference, sorted."""
    grid = value_flow.noise_grid(shape, config.num_quantiles)
    return jnp.sort(flow_samples(config, velocity, grid), axis=-1)


def spread(config: FlowCriticConfig, velocity, batch_shape: tuple[int, int]) -> Array:
    """sigma_hat = mean_s |dz_1/deps| by the frozen field's K steps: [B, T] (5.5)."""
    _, tangent = ops.integrate_with_tangent(
        _instantaneous(velocity),
        value_flow.noise_grid(batch_shape, config.num_samples),
        num_steps=config.num_steps,
        solver=config.solver,
        first_step=config.first_step,
        clip=config.clip,
    )
    return jnp.mean(jnp.abs(tangent), axis=-1)


def return_targets(
    config: FlowCriticConfig,
    key: Array,
    velocity,
    next_velocity,
    rewards: Array,
    mask: Array,
    *,
    discount: float,
    critic_lambda: float | Array,
    bootstrap: Array,
) -> Array:
    """Target samples [B, T, S] of the return at every state (algorithm section 4).

    Args:
      config: number of samples, inference and target mode.
      key: PRNG key.
      velocity: frozen field at the states before tokens.
      next_velocity: frozen field at the states after tokens (the next valid ones).
      rewards: [B, T] normalised token rewards.
      mask: [B, T].
      discount: gamma.
      critic_lambda: lambda, a number or [B].
      bootstrap: [B] bool, rows whose return continues after the last valid token.
    """
    shape = (*rewards.shape, config.num_samples)
    noise_key, mix_key = jax.random.split(key)
    if config.target_mode == "mixture":
        samples = flow_samples(config, next_velocity, jax.random.normal(noise_key, shape))
        targets = ops.lambda_mixture(
            mix_key,
            rewards,
            samples,
            mask,
            discount=discount,
            lambda_=critic_lambda,
            truncated=bootstrap,
        )
        return _clipped(config, targets)
    grid = value_flow.noise_grid(rewards.shape, config.num_samples)
    last = ops.last_valid(mask)[..., None]
    final = jnp.sum(flow_samples(config, next_velocity, grid) * last, axis=1)
    targets = ops.lambda_average(
        rewards,
        flow_samples(config, velocity, grid),
        mask,
        discount=discount,
        lambda_=critic_lambda,
        final_values=final * bootstrap[:, None],
    )
    # Quantiles come in order and times are stratified along the same axis: break the tie.
    targets = jax.random.permutation(mix_key, targets, axis=-1, independent=True)
    return _clipped(config, targets)


def risk_losses(config: FlowCriticConfig, velocity, frozen, targets: Array) -> dict[str, Array]:
    """Conditional risk and tail shape of the one-step quantiles, per token (5.4)."""
    grid = value_flow.noise_grid(targets.shape[:2], config.num_quantiles)
    q = value_flow.one_step(velocity, grid)
    if config.risk_targets == "flow":
        goal = integrated(config, frozen, grid)
    else:
        goal = jnp.sort(targets, axis=-1)
    alpha, beta = config.tail_alpha, config.tail_beta
    return {
        "cvar": ops.cvar_penalty(q, goal, alpha),
        "upper_gain": ops.upper_gain_penalty(q, goal, beta),
        "mean_shift": ops.mean_shift_penalty(q, goal),
        "tail_shape": ops.tail_shape_penalty(q, goal, alpha, beta),
        "tail_curvature": ops.tail_curvature_penalty(q, alpha, beta),
    }


def _draw(sampler, key: Array, shape: tuple[int, ...]) -> Array:
    """`sampler(key, shape)`, by one key or by one key per row."""
    if key.ndim == 0:
        return sampler(key, shape)
    return jax.vmap(lambda row: sampler(row, shape[1:]))(key)


def flow_losses(
    config: FlowCriticConfig,
    key: Array,
    velocity,
    frozen,
    next_frozen,
    targets: Array,
    rewards: Array,
    *,
    discount: float,
) -> dict[str, Array]:
    """Every critic loss that has a weight, unreduced: name -> [B, T].

    Args:
      config: which losses, and how.
      key: PRNG key of noise and times, or one key per row [B]: then a row's draws do not depend on
        the rows beside it, and splitting a batch changes nothing.
      velocity: live field at the states before tokens.
      frozen: frozen field at the same states.
      next_frozen: frozen field at the states after tokens.
      targets: [B, T, S] return samples.
      rewards: [B, T] normalised token rewards.
      discount: gamma.

    Returns:
      Per-token losses. "dcfm" has no meaning where a token has no successor: the caller masks it.
    """
    shape = targets.shape
    split = jax.random.split if key.ndim == 0 else jax.vmap(jax.random.split, (0, None), 1)
    keys = split(key, 6)
    losses = {}
    if config.anchor_weight > 0:
        losses["anchor"] = ops.anchor_loss(
            velocity,
            targets,
            _draw(jax.random.normal, keys[0], shape),
            _draw(ops.stratified_times, keys[1], shape),
        )
    if config.dcfm_weight > 0:
        losses["dcfm"] = ops.distributional_cfm_loss(
            velocity,
            next_frozen,
            rewards,
            _draw(jax.random.normal, keys[2], shape),
            _draw(ops.stratified_times, keys[3], shape),
            discount=discount,
            num_steps=config.num_steps,
            solver=config.solver,
            clip=config.clip,
            base=config.dcfm_base,
        )
    if config.geometry_weight > 0:
        losses["geometry"] = ops.geometric_consistency_loss(
            velocity,
            frozen,
            _draw(jax.random.normal, keys[4], shape),
            _draw(ops.stratified_times, keys[5], shape),
            mode=config.geometry,
            num_steps=config.num_steps,
            solver=config.solver,
            first_step=config.first_step,
            clip=config.clip,
        )
    if config.uses_risk:
        risk = risk_losses(config, velocity, frozen, targets)
        losses |= {name: x for name, x in risk.items() if loss_weight(config, name) > 0}
    return losses


def loss_weight(config: FlowCriticConfig, name: str) -> float:
    """The configured weight of a loss that `flow_losses` returns."""
    return {
        "anchor": config.anchor_weight,
        "dcfm": config.dcfm_weight,
        "geometry": config.geometry_weight,
        "cvar": config.cvar_weight,
        "upper_gain": config.upper_gain_weight,
        "mean_shift": config.mean_shift_weight,
        "tail_shape": config.tail_shape_weight,
        "tail_curvature": config.tail_curvature_weight,
    }[name]
