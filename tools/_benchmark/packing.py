"""Train steps at SmolLM2-135M's sizes: packed rows, `model.remat`, responses of several lengths."""

import dataclasses
import functools

import jax
import numpy as np
from _benchmark.language_model import SMOLLM2
from _benchmark.rollouts import made_up
from _benchmark.timing import alternate

from dfpo_jax.advantages import Advantages
from dfpo_jax.algorithms import AlgorithmConfig, compose
from dfpo_jax.critics import Critics
from dfpo_jax.models.packing import whole_layout
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.sharding import create_mesh, mesh_context
from dfpo_jax.training.config import OptimizerConfig
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.optim import make_optimizer
from dfpo_jax.training.update import Schedule
from dfpo_jax.types import Rollout, rollout_of

PROMPTS, SAMPLES, PROMPT, RESPONSE = 8, 2, 32, 256
LENGTHS = (64, 128, 256, 512)
_TOKENS = 2 * (PROMPT + RESPONSE)  # of a piece of packed rows


def _learner(tokens: int = 0, **settings: str) -> Learner:
    """GRPO's, with pieces of so many packed tokens; 0: padded rows, all at once.

    Settings are fields of the model. Weights are random.
    """
    model = Transformer(dataclasses.replace(SMOLLM2, **settings))
    config = AlgorithmConfig(Critics("none"), Advantages("group"))
    layout = functools.partial(whole_layout, tokens=tokens)
    algorithm = compose(model, config, 1.0, layout=layout)
    optimizers = {"policy": make_optimizer(OptimizerConfig(), 100)}
    schedule = Schedule(microbatch_tokens=tokens)
    return Learner(model, algorithm, optimizers, schedule, create_mesh())


def _rollout(mean: int = 0, prompt: int = 0, response: int = 0, prompts: int = PROMPTS) -> Rollout:
    """Full responses, or with a mean above 0 geometric lengths; PROMPT and RESPONSE slots for 0."""
    rows, prompt, response = prompts * SAMPLES, prompt or PROMPT, response or RESPONSE
    shapes = rollout_of(jax.ShapeDtypeStruct, rows, prompt, response, samples=SAMPLES)
    rollout = made_up(shapes, SMOLLM2.vocab_size)
    if mean == 0:
        return rollout
    lengths = np.minimum(np.random.default_rng(0).geometric(1 / mean, rows), response)
    mask = (np.arange(response)[None] < lengths[:, None]).astype(np.float32)
    return rollout.replace(mask=mask, log_probs=rollout.log_probs * mask)


def _temporary_bytes(learner: Learner, rollout: Rollout) -> int:
    """What the update needs beside the train state."""
    with mesh_context(learner.mesh):
        state = learner.abstract_state
        batch, context = jax.eval_shape(learner.programs["prepare"], state, rollout)
        compiled = learner.programs["update"].lower(state, batch, context).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def _times(learners: dict, work: dict[str, tuple], repeats: int) -> dict[str, float]:
    """Seconds of preparation and update; `work` has a learner's name and a rollout for each."""
    states = {name: learner.start(jax.random.key(0)) for name, learner in learners.items()}

    def step(name, rollout):
        prepared = learners[name].prepare(states[name], rollout)
        states[name], _ = learners[name].update(states[name], *prepared)
        return states[name]

    return alternate({key: functools.partial(step, *x) for key, x in work.items()}, repeats)


def packing(repeats: int) -> dict:
    """Preparation and update of GRPO: 16 responses to prompts of 32 tokens, at most 256 each.

    Full ones, and geometric lengths with a quarter of the limit on average.
    """
    learners = {"padded": _learner(), "packed": _learner(_TOKENS)}
    rollouts = {"full": _rollout(), "ragged": _rollout(RESPONSE // 4)}
    work = {
        f"{length}_{name}": (name, rollout)
        for length, rollout in rollouts.items()
        for name in learners
    }
    times = _times(learners, work, repeats)
    sizes = {name: _temporary_bytes(x, rollouts["full"]) for name, x in learners.items()}
    ragged = rollouts["ragged"]
    tokens = float(ragged.mask.sum() + ragged.prompt_mask.sum())
    return {
        "ragged_tokens/slots": tokens / (ragged.mask.size + ragged.prompt_mask.size),
        **times,
        "full_packed/padded": times["full_packed"] / times["full_padded"],
        "ragged_packed/padded": times["ragged_packed"] / times["ragged_padded"],
        "bytes_packed/padded": sizes["packed"] / sizes["padded"],
    }


def remat(repeats: int) -> dict:
    """Preparation and update of GRPO by `model.remat`: 16 rows of 64 + 64 tokens."""
    kinds, rollout = ("none", "dots", "full"), _rollout(prompt=64, response=64)
    learners = {kind: _learner(remat=kind) for kind in kinds}
    times = _times(learners, {kind: (kind, rollout) for kind in kinds}, repeats)
    sizes = {kind: _temporary_bytes(learners[kind], rollout) for kind in kinds}
    ratios = {f"{kind}/none": times[kind] / times["none"] for kind in kinds[1:]}
    memory = {f"bytes_{kind}/none": sizes[kind] / sizes["none"] for kind in kinds[1:]}
    return times | ratios | memory


def lengths(repeats: int) -> dict:
    """Seconds per token of GRPO's preparation and update, over the mean of all lengths' tokens.

    32 full responses to prompts of 32 tokens, packed into four pieces. All the same for a step that
    is linear in its tokens.
    """
    prompts = 2 * PROMPTS
    tokens = {n: prompts * SAMPLES * (PROMPT + n) for n in LENGTHS}
    learners = {n: _learner(tokens[n] // 4) for n in LENGTHS}
    work = {str(n): (n, _rollout(response=n, prompts=prompts)) for n in LENGTHS}
    times = _times(learners, work, repeats)
    mean = sum(times.values()) / sum(tokens.values())
    return times | {f"per_token_{n}/mean": times[str(n)] / tokens[n] / mean for n in LENGTHS}


BENCHMARKS = {"packing": packing, "remat": remat, "lengths": lengths}
