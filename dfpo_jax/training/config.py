"""The configuration of a run: frozen dataclasses, and the door from `ConfigDict` to them.

Outside, a configuration is an `ml_collections.ConfigDict` (see `configs/`), every key of which can
be overridden on the command line. `parse_config` turns it once into the frozen, validated
dataclasses that the rest of the code reads.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from dfpo_jax.advantages import Advantages
from dfpo_jax.algorithms import PRESETS, AlgorithmConfig, LogProbs, Returns
from dfpo_jax.algorithms.needs import check_parts
from dfpo_jax.critics import Critics
from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.objectives import Objectives
from dfpo_jax.plans import Plans
from dfpo_jax.rewards import Rewards
from dfpo_jax.rollout.partial import Partial
from dfpo_jax.rollout.sampling import SamplingConfig
from dfpo_jax.settings import check_choice, check_interval, check_unread, parse_section
from dfpo_jax.training.config_checks import check_sections, keeps_states
from dfpo_jax.training.config_keys import moved_setting, unknown_setting
from dfpo_jax.training.settings_dict import Settings, nested
from dfpo_jax.training.sources import TaskConfig, TokenizerConfig, WeightsConfig
from dfpo_jax.training.step_size import POWERS
from dfpo_jax.training.unread import refuse_unread


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of one network, with a schedule.

    Attributes:
      name: "adamw" (arXiv 1711.05101), which keeps two moments per parameter, or "adafactor"
        (arXiv 1804.04235), which keeps row and column means of the second one and no first one, so
        that its state is small. It ignores `b1`, `b2` and `moment_dtype`.
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
      step_scaling: "none", or "sqrt" or "linear": steps shrink with the effective sample size, see
        `step_size.scale_by_effective_samples`; of the policy, with an objective that reads the
        log-probabilities of the sampler.
      step_base: share of effective samples from which steps are whole.
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
    step_scaling: str = "none"
    step_base: float = 1.0

    def __post_init__(self):
        """Check ranges."""
        check_choice(self, "name", ("adamw", "adafactor"))
        check_choice(self, "moment_dtype", ("float32", "bfloat16"))
        check_choice(self, "schedule", ("constant", "linear", "cosine"))
        check_interval(self, "learning_rate", "weight_decay", "clip_norm", low=0.0)
        check_interval(self, "warmup_steps", "eps", low=0.0)
        check_interval(self, "b1", "b2", "final_fraction", low=0.0, high=1.0)
        check_choice(self, "step_scaling", ("none", *POWERS))
        check_interval(self, "step_base", low=1e-6, high=1.0)
        if self.step_scaling == "none":
            check_unread(self, "step_base", because="step_scaling is 'none'")
        for name in ("b1", "b2"):
            if getattr(self, name) == 1.0:
                raise ValueError(f"{name} is 1.0; it must lie in [0, 1)")


@dataclass(frozen=True)
class WarmStartConfig:
    """Supervised steps on the task's own answers before reinforcement learning.

    Attributes:
      steps: updates; 0 for none.
      batch_size: examples per update.
      stop_below: 0, or the cross-entropy, in nats per token and as the mean of the last 5 updates,
        below which it ends before `steps`: runs of several seeds then start about equally good.
      optimizer: its own.
    """

    steps: int = 0
    batch_size: int = 256
    stop_below: float = 0.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self):
        """Check ranges."""
        check_interval(self, "steps", low=0)
        check_interval(self, "batch_size", low=1)
        check_interval(self, "stop_below", low=0.0)
        if self.steps == 0:
            check_unread(self, "stop_below", because="steps is 0")


_MAY_BE_0 = ("iterations", "max_skipped", "behaviour_lag", "microbatch_tokens")


@dataclass(frozen=True)
class TrainConfig:
    """Sizes of the reinforcement learning loop.

    Attributes:
      iterations: rollouts, each followed by `epochs * minibatches` updates.
      prompts: prompts per iteration.
      samples: responses per prompt.
      prompt_length: most prompt slots P, in tokens; `task.overlong` says what happens to a prompt
        that is longer.
      prompt_buckets: smaller numbers of slots, increasing. The prompts of an iteration are padded
        to the smallest of them, or `prompt_length`, that holds the longest, and pay for no more;
        every program compiles once for each that comes up. Changes no result beyond rounding.
        Warm starts and the accuracy of evaluation sets have one length.
      epochs: passes over a rollout.
      minibatches: updates per pass.
      microbatches: pieces a minibatch is split into to save memory, and from 2 on preparation too,
        into pieces of as many rows; changes no result beyond rounding.
      microbatch_tokens: 0: the decoder reads a padded row for each sequence. Above 0, sequences are
        packed into rows of prompt_length + sampling.max_new_tokens tokens, and a minibatch is split
        into as many pieces of about this many tokens as it fills, one row per device at least, so
        that time and memory follow what was written; `microbatches` must be 1. Changes no result
        beyond rounding.
      max_skipped: updates in a row that may be skipped because a loss or gradient is not finite;
        one more stops the run.
      frozen: networks that do not train, such as ("critic",).
      behaviour_lag: iterations by which the policy that samples is behind the one that trains, as
        in asynchronous training; the state holds as many copies of what trains in the policy. The
        next rollout is then collected beside updates where `rollouts.samples_beside_training`. A
        loss whose ratios do not start at the sampler corrects for it by `objective.importance_cap`
        alone.
      keep_states: whether sampled responses bring the policy's hidden states, which preparation
        then reads instead of running the policy once more; only where they are those of the
        learner, see `keeps_states`. In between they lie on the host, D numbers for each slot
        of prompt and response. Changes results by rounding.
    """

    iterations: int = 100
    prompts: int = 128
    samples: int = 4
    prompt_length: int = 16
    prompt_buckets: tuple[int, ...] = ()
    epochs: int = 1
    minibatches: int = 2
    microbatches: int = 1
    microbatch_tokens: int = 0
    max_skipped: int = 3
    frozen: tuple[str, ...] = ()
    behaviour_lag: int = 0
    keep_states: bool = False

    def __post_init__(self):
        """Check ranges, that buckets increase, and that the batch divides."""
        for name in (item.name for item in dataclasses.fields(self)):
            if name not in ("prompt_buckets", "frozen", "keep_states"):
                check_interval(self, name, low=0 if name in _MAY_BE_0 else 1)
        if self.behaviour_lag > 0 and self.behaviour_lag >= self.iterations:
            raise ValueError(
                f"behaviour_lag is {self.behaviour_lag}; it must be less than iterations, "
                f"{self.iterations}: otherwise the first policy alone would sample"
            )
        if self.microbatch_tokens > 0 and self.microbatches > 1:
            raise ValueError(
                f"microbatch_tokens is {self.microbatch_tokens}, which says how a minibatch is "
                f"split, and microbatches {self.microbatches}; it must be 1"
            )
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

    @property
    def prepare_pieces(self) -> int:
        """Pieces in which preparation evaluates the decoder, where rows are padded."""
        return self.minibatches * self.microbatches if self.microbatches > 1 else 1


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on clean held-out items.

    Attributes:
      every: iterations between evaluations; 0 for the start and the end only.
      prompts: held-out prompts per evaluation set.
      out_of_domain: whether the task of the section `out_of_domain` is evaluated too; False builds
        nothing of it.
      critic_prompts: held-out prompts on which the critic is measured; 0 for none. With a plan that
        gives the rewards itself, such as "pairs", it is measured on none.
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
      rollout: how many more devices, the last ones, only sample, while those of the mesh train;
        needs `train.behaviour_lag`. `tensor` splits the policy there too, the others the responses.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    rollout: int = 0

    def __post_init__(self):
        """Check the range of `rollout`; the others depend on the devices."""
        check_interval(self, "rollout", low=0)


@dataclass(frozen=True)
class Config:
    """A whole run. Attributes not described here are sections, documented at their classes.

    Attributes:
      seed: of parameters, sampling and losses.
      algorithm: a key of `algorithms.PRESETS`, whose settings replace the defaults of what is not
        set otherwise.
      task: training prompts; evaluated in-domain on its held-out split.
      out_of_domain: a second task, only evaluated; see `EvaluationConfig.out_of_domain`.
      policy_optimizer: of the policy, and of networks that objectives add.
    """

    seed: int = 0
    algorithm: str = "dfpo"
    task: TaskConfig = field(default_factory=TaskConfig)
    out_of_domain: TaskConfig = field(default_factory=TaskConfig)
    rewards: Rewards = field(default_factory=Rewards)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    model: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            vocab_size=32,
            d_model=128,
            num_layers=3,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            d_ff=352,
        )
    )
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_new_tokens=8))
    plan: Plans = field(default_factory=Plans)
    partial: Partial = field(default_factory=Partial)
    critic: Critics = field(default_factory=Critics)
    advantage: Advantages = field(default_factory=Advantages)
    objective: Objectives = field(default_factory=Objectives)
    returns: Returns = field(default_factory=Returns)
    log_probs: LogProbs = field(default_factory=LogProbs)
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
        check_choice(self, "algorithm", tuple(PRESETS))
        check_sections(self)
        check_parts(self.algorithm_config(), self.plan, self.train.samples)

    @property
    def keeps_states(self) -> bool:
        """`train.keep_states`, where the states are the learner's."""
        return keeps_states(self)

    def algorithm_config(self) -> AlgorithmConfig:
        """The sections that make the algorithm."""
        return AlgorithmConfig(
            self.critic, self.advantage, self.objective, self.returns, self.log_probs
        )


def default_config() -> Settings:
    """Every key, as the preset of `Config.algorithm` has it: what files in `configs/` start from.

    Assigning `algorithm` gives the preset's values to all settings that were not assigned.
    """
    return Settings.of(Config(), PRESETS, _unknown)


def parse_config(source: Mapping[str, Any]) -> Config:
    """Turn a `ConfigDict` or mapping into a validated `Config`.

    Keys that are left out, at any depth, keep the values of the preset that `algorithm` names, or
    the defaults of their dataclasses.

    Raises:
      ValueError: an unknown key (with those it may have meant), a value of the wrong type or one
        out of range, or a setting from the command line that nothing reads; the message starts with
        the key's full path.
    """
    algorithm = source.get("algorithm", Config.algorithm)
    preset = nested(PRESETS.get(algorithm, {}) if isinstance(algorithm, str) else {})
    default = Config()
    known = {item.name for item in dataclasses.fields(default)}
    for key, value in source.items():  # a saved configuration of an earlier version
        if key not in known and (sentence := moved_setting(key, value, default)):
            raise ValueError(sentence)
    config = parse_section(default, _merged(preset, source), "config", _unknown)
    refuse_unread(config, getattr(source, "flagged", ()))
    return config


def _unknown(path: str) -> str:
    return unknown_setting(path.removeprefix("config."), Config())


def _merged(preset: Mapping[str, Any], source: Mapping[str, Any]) -> Mapping[str, Any]:
    """`source`, and what it leaves out of `preset`."""
    merged = {name: source[name] for name in source}
    for name, value in preset.items():
        if name not in merged:
            merged[name] = value
        elif isinstance(value, dict) and isinstance(merged[name], Mapping | ConfigDict):
            merged[name] = _merged(value, merged[name])
    return merged
