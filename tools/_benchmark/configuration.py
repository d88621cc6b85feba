"""How fast the programs of a configuration are on this machine's devices, with random weights.

Prompts and responses have their full lengths, nothing ends a response, and rollouts are made up.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from _ahead.chips import chip_of
from _ahead.report import with_sizes
from _benchmark.rollouts import made_up
from _benchmark.timing import alternate

from dfpo_jax.memory import Checked
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.rollout.generate import generate
from dfpo_jax.sharding import create_mesh, mesh_context, put_batch
from dfpo_jax.training.config import Config
from dfpo_jax.training.programs import Programs
from dfpo_jax.training.run import check_division, make_learner
from dfpo_jax.training.speed import speed_metrics

_CUDNN = "__cudnn$fmha"


def programs_of(config: Config) -> Programs:
    """What the configuration runs, on the devices of its mesh.

    Raises:
      ImportError, ValueError: the sizes of its weights cannot be read, the devices do not divide a
        batch, or some of them would only sample.
    """
    if config.mesh.rollout > 0:
        raise ValueError(f"config.mesh.rollout is {config.mesh.rollout}; here it must be 0")
    config = with_sizes(config)
    mesh = create_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    check_division(config, mesh)
    return Programs(config, make_learner(config, Transformer(config.model), mesh))


def decoding_bytes(config: Config, parameters: int) -> float:
    """The least memory traffic of a round of sampling: in each step, weights and filled cache.

    Args:
      config: the run; all its responses have their full length.
      parameters: of the policy.
    """
    model, sampling, train = config.model, config.sampling, config.train
    rows = train.prompts * (config.plan.build(train.samples).round_samples or train.samples)
    slots = min(sampling.slots or rows, rows)
    steps = math.ceil(rows / slots) * sampling.max_new_tokens
    read = parameters if model.tie_embeddings else parameters - model.vocab_size * model.d_model
    width = 2 * model.num_layers * model.num_kv_heads * model.head_dim
    filled = train.prompt_length + sampling.max_new_tokens / 2
    cached = slots * filled * width * jnp.dtype(sampling.cache_dtype or model.dtype).itemsize
    return steps * (read * jnp.dtype(model.dtype).itemsize + cached)


def configuration(programs: Programs, repeats: int) -> dict:
    """Seconds of a round of sampling, of preparation, and of an iteration's updates; their speed.

    "decode/bandwidth" is the least time that sampling's memory traffic takes over the time that it
    took, "flops_utilisation" the metric `time/flops_utilisation` of a run. Both need the figures of
    the device, and the first one a single device. "cudnn_attention" counts the calls of cuDNN's
    attention in the program of the updates.
    """
    config, learner, model = programs.config, programs.learner, programs.model
    train, devices = config.train, list(learner.mesh.devices.flat)
    state = learner.start(jax.random.key(0))
    shapes = programs.rollout(train.prompts * train.samples)
    rollout = made_up(shapes, config.model.vocab_size)
    prompts = np.zeros((train.prompts, train.prompt_length), np.int32)
    run = functools.partial(
        generate,
        model,
        config=config.sampling,
        eos_ids=(),
        pad_id=0,
        num_samples=programs.round_samples,
        top=learner.top,
        keep_states=config.keeps_states,
    )
    sampler = Checked("sampling", jax.jit(run), "set sampling.slots or lower train.prompts")

    def sample():
        with mesh_context(learner.mesh):
            inputs = put_batch((prompts, np.ones_like(prompts, np.float32)), learner.mesh)
            return sampler(state.params["policy"], *inputs, state.key)

    def prepare():
        return learner.prepare(state, rollout)

    def update():
        nonlocal state
        state, _ = learner.update(state, *prepared)
        return state

    prepared = prepare()
    times = alternate({"sample": sample, "prepare": prepare, "update": update}, repeats)
    parameters = sum(x.size for x in jax.tree.leaves(state.params["policy"]))
    tokens = train.prompts * programs.round_samples * config.sampling.max_new_tokens
    speed = speed_metrics(
        rollout,
        config.model,
        state.params,
        train.epochs,
        devices=len(devices),
        waited=times["sample"],
        sampled=times["sample"],
        prepared=times["prepare"],
        updated=times["update"],
    )
    names = ("trained_tokens_per_second", "flops_utilisation")
    found = {
        "parameters": parameters,
        **times,
        "sampled_tokens_per_second": tokens / times["sample"],
        **{name: speed[f"time/{name}"] for name in names if f"time/{name}" in speed},
    }
    chip = chip_of(devices[0].device_kind)
    if chip is not None and len(devices) == 1:
        least = decoding_bytes(config, parameters) / chip.hbm_bandwidth
        found["decode/bandwidth"] = least / times["sample"]
    peak = (devices[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak is not None:
        found["peak_bytes"] = peak
    if devices[0].platform == "gpu":
        found["cudnn_attention"] = programs.lower("train").as_text().count(_CUDNN)
    return found
