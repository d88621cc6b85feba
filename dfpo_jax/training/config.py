"""The configuration of a run: frozen dataclasses, and the door from `ConfigDict` to them.

Outside, a configuration is an `ml_collections.ConfigDict` (see `configs/`), every key of which can
be overridden on the command line. `parse_config` turns it once into the frozen, validated
dataclasses that the rest of the code reads.
"""

import dataclasses
import itertools
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_collections

from dfpo_jax.algorithms import (
    ALGORITHMS,
    CriticConfig,
    FlowCriticConfig,
    GroupConfig,
    PolicyConfig,
)
from dfpo_jax.algorithms.base import check_choice, check_interval
from dfpo_jax.algorithms.dfpo import RiskConfig
from dfpo_jax.algorithms.flow_critic import RISK_WEIGHTS
from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.models.value_flow import ValueFlowConfig
from dfpo_jax.rollout.collect import LengthPenalty
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.tasks.noise import RewardNoise
from dfpo_jax.training.config_keys import unknown_setting
from dfpo_jax.training.sources import TaskConfig, TokenizerConfig, WeightsConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of one network, with a schedule.

    Attributes:
      name: "adamw" (arXiv 1711.05101), which keeps two moments per parameter, or "adafactor"
        (arXiv 1804.04235), which keeps row and column means of the second one and no first one, so
        that its state is small; `b1`, `b2` and `moment_dtype` mean nothing to it.
      moment_dtype: storage type of AdamW's first moment, "float32" or "bfloat16". The second
        moment stays float32: in bfloat16 its running mean would stop moving. Optax has no 8-bit
        moments.
      learning_rate: peak learning rate.
      warmup_steps: updates over which it rises linearly from 0.
      schedule: "constant", "linear" or "cosine" decay to `final_fraction` of the peak.
      final_fraction: see `schedule`.
      b1, b2, eps: Adam's.
      weight_decay: decoupled weight decay.
      clip_norm: 0, or the global norm gradients are clipped to.
    """

    name: str = "adamw"
    moment_dtype: str = "float32"
    learning_rate: float = 3e-4
    warmup_steps: int = 0
    schedule: str = "constant"
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self):
        """Check ranges."""
        check_choice(self, "name", ("adamw", "adafactor"))
        check_choice(self, "moment_dtype", ("float32", "bfloat16"))
        check_choice(self, "schedule", ("constant", "linear", "cosine"))
        check_interval(self, "learning_rate", "weight_decay", "clip_norm", low=0.0)
        check_interval(self, "warmup_steps", "eps", low=0.0)
        check_interval(self, "b1", "b2", "final_fraction", low=0.0, high=1.0)
        for name in ("b1", "b2"):
            if getattr(self, name) == 1.0:
                raise ValueError(f"{name} is 1.0; it must lie in [0, 1)")


@dataclass(frozen=True)
class WarmStartConfig:
    """Supervised steps on the task's own answers before reinforcement learning.

    Attributes:
      steps: updates; 0 for none.
      batch_size: examples per update.
      optimizer: its own.
    """

    steps: int = 0
    batch_size: int = 256
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "steps", low=0)
        check_interval(self, "batch_size", low=1)


@dataclass(frozen=True)
class TrainConfig:
    """Sizes of the reinforcement learning loop.

    Attributes:
      iterations: rollouts, each followed by `epochs * minibatches` updates.
      prompts: prompts per iteration.
      samples: responses per prompt.
      prompt_length: most prompt slots P, in tokens; what is longer is `task.overlong`.
      prompt_buckets: smaller numbers of slots, increasing. The prompts of an iteration are padded
        to the smallest of them, or `prompt_length`, that holds the longest, and pay for no more;
        every program compiles once for each that comes up. Changes no result beyond rounding.
        Warm starts and the accuracy of evaluation sets have one length.
      epochs: passes over a rollout.
      minibatches: updates per pass.
      microbatches: pieces a minibatch is split into to save memory; changes no result.
      max_skipped: updates in a row that may be skipped because a loss or gradient is not finite;
        one more stops the run.
    """

    iterations: int = 100
    prompts: int = 128
    samples: int = 4
    prompt_length: int = 16
    prompt_buckets: tuple[int, ...] = ()
    epochs: int = 1
    minibatches: int = 2
    microbatches: int = 1
    max_skipped: int = 3

    def __post_init__(self):
        """Check ranges, that buckets increase, and that the batch divides."""
        for name in (item.name for item in dataclasses.fields(self)):
            if name != "prompt_buckets":
                check_interval(self, name, low=0 if name in ("iterations", "max_skipped") else 1)
        bounds = (0, *self.prompt_buckets, self.prompt_length)
        integers = all(type(slots) is int for slots in self.prompt_buckets)
        if not integers or any(low >= high for low, high in itertools.pairwise(bounds)):
            raise ValueError(
                f"prompt_buckets is {self.prompt_buckets}; it must hold increasing integers from 1 "
                f"to prompt_length - 1, {self.prompt_length - 1}"
            )
        rows, pieces = self.prompts * self.samples, self.minibatches * self.microbatches
        if rows % pieces:
            raise ValueError(
                f"prompts * samples is {rows}; it must be a multiple of minibatches * "
                f"microbatches, {pieces}"
            )


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on clean held-out items.

    Attributes:
      every: iterations between evaluations; 0 for the start and the end only.
      prompts: held-out prompts per evaluation set.
      out_of_domain: whether the task of the section `out_of_domain` is evaluated too; False builds
        nothing of it.
      critic_prompts: held-out prompts on which the critic is measured; 0 for none.
      critic_samples: responses per such prompt.
    """

    every: int = 0
    prompts: int = 256
    out_of_domain: bool = True
    critic_prompts: int = 32
    critic_samples: int = 16

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "every", "critic_prompts", low=0)
        check_interval(self, "prompts", "critic_samples", low=1)


@dataclass(frozen=True)
class CheckpointConfig:
    """Orbax checkpoints.

    Attributes:
      every: iterations between checkpoints; 0 for the end only.
      keep: newest checkpoints kept.
    """

    every: int = 0
    keep: int = 2

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "every", low=0)
        check_interval(self, "keep", low=1)


@dataclass(frozen=True)
class LogConfig:
    """Where metrics go besides metrics.jsonl, and how much text is kept.

    Attributes:
      samples: responses of each iteration that are written to samples.jsonl, those to its first
        prompt first.
      tensorboard: event files in the work directory.
      wandb_project: "" or the name of a Weights & Biases project.
    """

    samples: int = 4
    tensorboard: bool = True
    wandb_project: str = ""

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "samples", low=0)


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one of them may be -1, "what is left".

    Attributes:
      data, fsdp, tensor: sizes.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclass(frozen=True)
class Config:
    """A whole run. Every attribute is a section of its own, documented at its class.

    Attributes:
      seed: of parameters, sampling and losses.
      algorithm: a key of `dfpo_jax.algorithms.ALGORITHMS`.
      task: training prompts; evaluated in-domain on its held-out split.
      out_of_domain: a second task, only evaluated; see `EvaluationConfig.out_of_domain`.
      value_clip: PPO's, see `PPOConfig`.
    """

    seed: int = 0
    algorithm: str = "dfpo"
    task: TaskConfig = field(default_factory=TaskConfig)
    out_of_domain: TaskConfig = field(default_factory=TaskConfig)
    noise: RewardNoise = field(default_factory=RewardNoise)
    length_penalty: LengthPenalty = field(default_factory=LengthPenalty)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    model: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(32, 128, 3, 4, 2, 32, 352)
    )
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_new_tokens=8))
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    flow: FlowCriticConfig = field(default_factory=FlowCriticConfig)
    head: ValueFlowConfig = field(default_factory=ValueFlowConfig)
    risk: RiskConfig = field(default_factory=RiskConfig)
    group: GroupConfig = field(default_factory=GroupConfig)
    value_clip: float = 0.0
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    policy_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    critic_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3)
    )
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self):
        """Check what spans sections."""
        check_choice(self, "algorithm", tuple(ALGORITHMS))
        longest = self.train.prompt_length + self.sampling.max_new_tokens
        if longest > self.model.max_positions:
            raise ValueError(
                f"train.prompt_length + sampling.max_new_tokens is {longest}; it must be at most "
                f"model.max_positions, {self.model.max_positions}"
            )
        if self.length_penalty.buffer > self.sampling.max_new_tokens:
            raise ValueError(
                f"length_penalty.buffer is {self.length_penalty.buffer}; it must be at most "
                f"sampling.max_new_tokens, {self.sampling.max_new_tokens}"
            )
        if self.sampling.temperature == 0.0:
            raise ValueError("sampling.temperature is 0.0; training needs samples, so above 0")
        truncating = self.sampling.top_k > 0 or self.sampling.top_p < 1.0
        if truncating and not self.policy.recompute_log_probs:
            raise ValueError(
                "policy.recompute_log_probs is False; with top_k or top_p the sampler's "
                "log-probabilities belong to a truncated distribution, so it must be True"
            )
        self._refuse_what_has_no_effect()
        self.algorithm_config()

    def _refuse_what_has_no_effect(self) -> None:
        algorithm = f"algorithm {self.algorithm!r}"
        if self.value_clip > 0.0 and self.algorithm != "ppo":
            raise ValueError(
                f"value_clip is {self.value_clip} and {algorithm}; only ppo clips values, so it "
                "must be 0.0"
            )
        if self.policy.importance_cap > 0.0 and not self.policy.recompute_log_probs:
            raise ValueError(
                f"policy.importance_cap is {self.policy.importance_cap} and recompute_log_probs "
                "False; without log-probabilities of the trainer there is no ratio to cap, so it "
                "must be 0.0"
            )
        weights = {name: getattr(self.flow, name) for name in RISK_WEIGHTS}
        for name, weight in weights.items():
            if weight > 0.0 and self.algorithm != "dfpo":
                raise ValueError(
                    f"flow.{name} is {weight} and {algorithm}; only dfpo's critic is a flow, so it "
                    "must be 0.0"
                )
        reader = "advantage 'rank'" if self.policy.advantage == "rank" else algorithm
        if self.risk.measure != "mean" and reader != "algorithm 'dfpo'":
            raise ValueError(
                f"risk.measure is {self.risk.measure!r} and {reader}, which reads no risk measure; "
                "it must be 'mean'"
            )

    def algorithm_config(self) -> Any:
        """The settings of the chosen algorithm."""
        _, settings = ALGORITHMS[self.algorithm]
        return settings(self)


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
    """A dataclass and all in it as a `ConfigDict`."""
    return ml_collections.ConfigDict(dataclasses.asdict(config))


def default_config() -> ml_collections.ConfigDict:
    """Every key with its default: what files in `configs/` start from."""
    return to_config_dict(Config())


def parse_config(source: Mapping[str, Any]) -> Config:
    """Turn a `ConfigDict` or mapping into a validated `Config`.

    Keys that are left out, at any depth, keep the values of `default_config`.

    Raises:
      ValueError: an unknown key (with those it may have meant), a value of the wrong type or one
        out of range; the message starts with the key's full path.
    """
    return _parse(Config(), source, "config")


def _parse(default: Any, source: Mapping[str, Any], path: str) -> Any:
    hints = typing.get_type_hints(type(default))
    names = [item.name for item in dataclasses.fields(default)]
    values = {}
    for key in source:
        if key not in names:
            name = f"{path}.{key}".removeprefix("config.")
            raise ValueError(unknown_setting(name, Config()))
        values[key] = _convert(hints[key], getattr(default, key), source[key], f"{path}.{key}")
    try:
        return dataclasses.replace(default, **values)
    except ValueError as error:
        raise ValueError(f"{path}.{error}") from error


def _convert(hint: Any, default: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is Mapping:
        if not isinstance(value, Mapping | ml_collections.ConfigDict):
            raise ValueError(f"{path} is {value!r}; it must be a section of settings")
        if dataclasses.is_dataclass(hint):
            return _parse(default, value, path)
        return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else dict(value)
    if hint is float and type(value) in (int, float):
        return float(value)
    if typing.get_origin(hint) is tuple and type(value) in (tuple, list):
        return tuple(value)
    if type(value) is not hint:
        raise ValueError(
            f"{path} is {value!r} of type {type(value).__name__}; it must be of type "
            f"{hint.__name__}"
        )
    return value
