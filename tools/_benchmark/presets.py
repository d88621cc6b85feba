"""The train step of every preset against PPO's, on one policy of 20M parameters.

How to read it. A step is `prepare`, which makes targets and advantages of a rollout, and `update`,
one optimizer step of every network on all its rows. The learners of PPO and of a preset take turns
in one process, on the same rows, and each turn gives one ratio, preset to PPO. The table shows
median ratios, with quartiles in brackets. The row of PPO itself is a second learner of PPO; how far
it is from 1 shows how much other load disturbs every row. Presets without a critic take about half
as long as PPO, whose critic has a trunk of its own, as large as the policy.

Sampling is left out: presets sample alike, except that some plans draw more rows than they keep.
The last column says how many these draw, at least and at most, for the rows of a step. For the
other presets, an iteration is sampling, which takes as long as PPO's, and this step.

"Compile" is how much longer the first step took than the later ones: tracing, compilation, and
memory that is allocated once. A compilation cache makes it shorter.

The optimizer takes the same time for any number of tokens, so few tokens bring ratios closer to 1
than many. The flags `--prompts`, `--samples`, `--prompt_length` and `--response_length` set them.

Policy and critic start at random, and rollouts are made up. Learning rates are close to 0, so that
every turn meets the same numbers. Warm-ups of the critic are timed as they begin; they do the same
work as the iterations that follow them.
"""

import dataclasses
import gc
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from _benchmark.rollouts import made_up

from dfpo_jax.algorithms import PRESETS
from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.plans import Draw, Drawn, Plan
from dfpo_jax.plans.check import zeros
from dfpo_jax.sharding import create_mesh
from dfpo_jax.tasks.base import Item
from dfpo_jax.training.config import Config, default_config, parse_config
from dfpo_jax.training.programs import Programs
from dfpo_jax.training.run import check_division, make_learner
from dfpo_jax.training.settings_dict import Settings

POLICY = TransformerConfig(
    vocab_size=4096,
    d_model=448,
    num_layers=8,
    num_heads=7,
    num_kv_heads=7,
    head_dim=64,
    d_ff=1216,
)
"""21.3M parameters."""
PARTS = ("prepare", "update", "step")
_BASE = "ppo"
_LEARNING_RATE = 1e-9  # 0 would let the compiler drop work


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Rows of a step, which are the same for every preset.

    Attributes:
      prompts: of a rollout.
      samples: responses per prompt, at least 2 for methods with groups.
      prompt_length: tokens of each prompt.
      response_length: tokens of each response.
    """

    prompts: int = 4
    samples: int = 4
    prompt_length: int = 16
    response_length: int = 32


def chosen(names: Sequence[str]) -> list[str]:
    """Presets in their own order; all for ["all"].

    Raises:
      ValueError: there is no such preset.
    """
    for name in names:
        if name != "all" and name not in PRESETS:
            raise ValueError(f"--presets={name}: there are all, {', '.join(PRESETS)}")
    return [name for name in PRESETS if "all" in names or name in names]


def configurations(names: Sequence[str], sizes: Sizes) -> dict[str, Config]:
    """The runs whose steps are timed: PPO's, and those of the named presets.

    Raises:
      ValueError: a preset takes other sizes, or the devices do not divide the rows.
    """
    found = {}
    for name in (_BASE, *names):
        try:
            found[name] = parse_config(_settings(name, sizes))
            check_division(found[name], _mesh(found[name]))
        except ValueError as error:
            raise ValueError(f"--presets={name}: {error}") from error
    return found


def _settings(name: str, sizes: Sizes) -> Settings:
    config = default_config()
    config.algorithm = name
    config.model.update(dataclasses.asdict(POLICY))
    config.train.update(
        prompts=sizes.prompts,
        samples=sizes.samples,
        prompt_length=sizes.prompt_length,
        minibatches=1,
    )
    config.sampling.max_new_tokens = sizes.response_length
    if not config.returns.outcome:
        config.critic.source = "random"  # of a value model, which a learner alone does not read
    for section in (config.policy_optimizer, config.critic_optimizer):
        section.learning_rate = _LEARNING_RATE
    return config


def _mesh(config: Config) -> jax.sharding.Mesh:
    return create_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)


def rows_drawn(plan: Plan, prompts: int, samples: int) -> tuple[int, int]:
    """Responses that a plan samples in an iteration: (fewest, most).

    Fewest where rewards are 0 and 1 in turn, most where all are 0.
    """

    def count(scale: float) -> int:
        drawn = []

        def sample(items: Sequence[Item], each: int, round: int) -> Drawn:
            found = zeros(items, each)
            drawn.append(len(found.texts))
            rewards = scale * found.rollout.rewards
            return found._replace(rollout=found.rollout.replace(rewards=rewards))

        def given(items: Sequence[Item], texts: Sequence[str]) -> Drawn:
            return zeros(items, 1)

        def items(number: int) -> list[Item]:
            return [Item("?", "!", index=i) for i in range(number)]

        plan.collect(Draw(sample, given), items, prompts, samples)
        return sum(drawn)

    return count(1.0), count(0.0)


class _Timed:
    """A learner with a state and a rollout, whose step is run and timed again and again."""

    def __init__(self, config: Config):
        """Start at random."""
        self._learner = make_learner(config, Transformer(config.model), _mesh(config))
        rows = config.train.prompts * config.train.samples
        shapes = Programs(config, self._learner).rollout(rows)
        self._rollout = made_up(shapes, config.model.vocab_size)
        self._state = jax.block_until_ready(self._learner.start(jax.random.key(0)))
        self.parameters = {
            name: sum(x.size for x in jax.tree.leaves(network))
            for name, network in self._state.params.items()
        }
        self.first = self.step()

    def step(self) -> dict[str, float]:
        """Seconds of a step and of its parts."""
        begun = time.perf_counter()
        prepared = self._learner.prepare(self._state, self._rollout)
        jax.block_until_ready(prepared)
        middle = time.perf_counter()
        self._state, _ = self._learner.update(self._state, *prepared)
        jax.block_until_ready(self._state)
        done = time.perf_counter()
        return dict(zip(PARTS, (middle - begun, done - middle, done - begun), strict=True))


def compare(
    names: Sequence[str], configs: Mapping[str, Config], repeats: int
) -> Iterator[dict[str, Any]]:
    """A row for each preset, as soon as it is timed.

    Args:
      names: of presets.
      configs: from `configurations` of these names.
      repeats: turns, each of which gives a ratio.

    Yields:
      "preset"; by part of the step "ratio", its quartiles and median [3], and "seconds" and
      "ppo_seconds", medians; "compile_seconds" and "ppo_compile_seconds"; "parameters" by network;
      "rows", of a step, and "rows_drawn", the fewest and the most that the plan samples for them.
    """
    base = _Timed(configs[_BASE])
    for name in names:
        timed = _Timed(configs[name])
        pairs = [_pair(base, timed, turn) for turn in range(repeats)]
        train = configs[name].train
        plan = configs[name].plan.build(train.samples)
        yield {
            "preset": name,
            "parameters": timed.parameters,
            "rows": train.prompts * train.samples,
            "rows_drawn": rows_drawn(plan, train.prompts, train.samples),
            **_summary(base, timed, pairs),
        }
        del timed
        gc.collect()  # or two states of presets would be in memory


def _pair(base: _Timed, timed: _Timed, turn: int) -> tuple[dict, dict]:
    """A step of both; who begins changes from turn to turn."""
    if turn % 2 == 0:
        return base.step(), timed.step()
    after = timed.step()
    return base.step(), after


def _summary(base: _Timed, timed: _Timed, pairs: list[tuple[dict, dict]]) -> dict[str, Any]:
    ratios = {part: [own[part] / ppo[part] for ppo, own in pairs] for part in PARTS}
    ppo, own = (
        {part: statistics.median(times[part] for times in side) for part in PARTS}
        for side in zip(*pairs, strict=True)
    )
    return {
        "ratio": {part: np.percentile(ratios[part], (25, 50, 75)).tolist() for part in PARTS},
        "seconds": own,
        "ppo_seconds": ppo,
        "compile_seconds": timed.first["step"] - own["step"],
        "ppo_compile_seconds": base.first["step"] - ppo["step"],
    }


_COLUMNS = ("preset", *PARTS, "seconds, PPO's", "compile, PPO's", "networks", "rows drawn")
HEADER = f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|"


def line(row: dict[str, Any]) -> str:
    """A row from `compare`, as one of the table whose head is `HEADER`."""
    cells = [row["preset"]]
    for part in PARTS:
        low, median, high = row["ratio"][part]
        cells.append(f"{median:.2f} ({low:.2f} to {high:.2f})")
    cells.append(f"{row['seconds']['step']:.2f}, {row['ppo_seconds']['step']:.2f}")
    cells.append(f"{row['compile_seconds']:.1f}, {row['ppo_compile_seconds']:.1f}")
    cells.append(", ".join(row["parameters"]))
    fewest, most = row["rows_drawn"]
    cells.append(f"{fewest} to {most} for {row['rows']}" if most > row["rows"] else "")
    return f"| {' | '.join(cells)} |"
