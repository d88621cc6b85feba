"""The parameters that a run starts from: published ones, and supervised steps on answers."""

import logging
from collections import deque

import flax.linen as nn
import jax

from dfpo_jax.algorithms import sft
from dfpo_jax.models import lora, pretrained
from dfpo_jax.sharding import mesh_context
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.optim import make_optimizer
from dfpo_jax.training.run import LORA, WARM_START, Run, task_demonstrations
from dfpo_jax.training.update import Schedule, init_policy
from dfpo_jax.types import ArrayTree

_LOG = logging.getLogger(__name__)
_RECENT = 5  # updates, whose mean loss may end a warm start


def first_policy(run: Run) -> ArrayTree | None:
    """The parameters a run starts from: published ones, a warm start, or None for random ones."""
    config = run.config
    params = None
    if config.weights.source:
        options = config.weights.all_overrides(config.model)
        _, params = pretrained.load(config.weights.source, mesh=run.learner.mesh, **options)
        if config.model.lora.rank > 0:
            params = lora.join(_first_updates(run), params)
    return warm_start(run, params) if config.warm_start.steps > 0 else params


def _first_updates(run: Run) -> ArrayTree:
    """LoRA's parameters as they are born, on the mesh."""
    learner = run.learner

    def init(key):
        return lora.split(nn.unbox(init_policy(learner.model, key)))[0]

    places, _ = lora.split(learner.state_shardings.params["policy"])
    with mesh_context(learner.mesh):
        return jax.jit(init, out_shardings=places)(jax.random.fold_in(run.key, LORA))


def warm_start(run: Run, params: ArrayTree | None = None) -> ArrayTree:
    """Policy parameters after supervised steps on the training split's own answers.

    Args:
      run: built.
      params: to start from; random by default.
    """
    config = run.config.warm_start
    optimizer = make_optimizer(config.optimizer, config.steps)
    learner = Learner(
        run.sampler.model,
        sft(run.sampler.model),
        {"policy": optimizer},
        Schedule(),
        run.learner.mesh,
    )
    state = learner.start(jax.random.fold_in(run.key, WARM_START), params)
    losses = deque(maxlen=_RECENT)
    for step in range(config.steps):
        # Iterations of reinforcement learning draw from steps 0, 1, ...: stay clear of them.
        items = run.train_task.batch(2**30 + step, config.batch_size)
        rollout = task_demonstrations(run.sampler, items)
        state, metrics = learner.update(state, *learner.prepare(state, rollout))
        losses.append(metrics["policy/cross_entropy"])
        done = len(losses) == _RECENT and sum(losses) / _RECENT < config.stop_below
        if done or step % 50 == 49 or step == config.steps - 1:
            _LOG.info("warm start %d/%d: cross-entropy %.3f", step + 1, config.steps, losses[-1])
        if done:
            break
    return state.params["policy"]
