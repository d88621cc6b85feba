"""What a run would be: its settings, its parameters and the memory of its programs."""

import dataclasses
import math
from collections.abc import Iterator
from operator import attrgetter

import jax

from dfpo_jax.memory import compiled, free_bytes, needed_bytes
from dfpo_jax.training.config import Config, TaskConfig, parse_config
from dfpo_jax.training.config_diff import flatten
from dfpo_jax.training.config_keys import setting_paths
from dfpo_jax.training.programs import Programs, bytes_per_chip
from dfpo_jax.training.run import Run
from dfpo_jax.training.unread import unread_setting
from dfpo_jax.types import ArrayTree


def describe(run: Run) -> Iterator[str]:
    """Lines about a run that is built and not started, the quick ones first.

    Its settings, those that differ from the defaults first and those that nothing reads last;
    devices and parameters; and, while they compile, the memory of the programs of one iteration,
    per device.

    Raises:
      MemoryError: after the last line, a program needs more memory than a device has free; names
        it.
    """
    yield from settings(run.config)
    yield ""
    yield from _sizes(run)
    too_large = []
    for name in ("sample", "prepare", "train"):
        line, fits = _memory(run, name)
        yield line
        too_large += [] if fits else [name]
    if too_large:
        raise MemoryError(f"{', '.join(too_large)} would not fit the memory of a device")


def settings(config: Config) -> Iterator[str]:
    """Every setting as "name = value", under what they are: changed, default or not read.

    Defaults are those of the preset that `algorithm` names, but for `algorithm` itself. Settings of
    the model that come with published weights count as changed.
    """
    task = TaskConfig().resolved()
    preset = parse_config({"algorithm": config.algorithm})
    shown = {"algorithm": Config.algorithm, "task": task, "out_of_domain": task}
    preset = dataclasses.replace(preset, **shown)
    ours, defaults = flatten(dataclasses.asdict(config)), flatten(dataclasses.asdict(preset))
    groups = {
        "settings that differ from the defaults:": [],
        "defaults:": [],
        "not read by this run:": [],
    }
    changed, default, unread = groups.values()
    paths = setting_paths(config)
    sections = {path for path in paths if dataclasses.is_dataclass(attrgetter(path)(config))}
    for name, value in ours.items():
        if name in sections:  # a part without settings
            continue
        kept = name in defaults and value == defaults[name]
        group = unread if unread_setting(config, name) else default if kept else changed
        group.append(f"  {name} = {value!r}")
    for heading, lines in groups.items():
        yield heading
        yield from lines


def _sizes(run: Run) -> Iterator[str]:
    mesh, state = run.learner.mesh, run.learner.abstract_state
    device, axes = mesh.devices.flat[0], ", ".join(f"{k}={v}" for k, v in mesh.shape.items())
    yield f"devices: {mesh.size} x {device.device_kind}, mesh {axes}"
    if run.sampler.mesh != mesh:
        yield f"devices that only sample: {run.sampler.mesh.size}"
    train, limit = run.config.train, run.config.sampling.max_new_tokens
    yield (
        f"an iteration: {train.prompts} prompts x {train.samples} responses of at most "
        f"{train.prompt_length} + {limit} tokens, {train.epochs * train.minibatches} updates"
    )
    for name, params in state.params.items():
        yield f"parameters of the {name}: {_count(params):,}"
    size = bytes_per_chip(state) / 2**30
    yield f"train state, with optimizers: {size:.3g} GiB per device"


def _count(tree: ArrayTree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _memory(run: Run, name: str) -> tuple[str, bool]:
    """The line about a program, and whether it fits beside the train state."""
    learner, mesh = run.learner, run.learner.mesh
    programs = Programs(run.config, learner, rollout_mesh=run.sampler.mesh)
    analysis = compiled(programs.lower(name), programs.mesh.devices.flat).memory_analysis()
    if analysis is None:
        return f"{name}: the compiler does not say how much memory it needs", True
    arguments = analysis.argument_size_in_bytes
    if name == "sample" and run.sampler.mesh != mesh:
        mesh = run.sampler.mesh
    else:  # the state stays in memory while sampling, which takes no more of it than the policy
        arguments = max(bytes_per_chip(learner.abstract_state), arguments)
    needed = needed_bytes(analysis)
    total = arguments + needed
    line = f"{name}: {total / 2**30:.3g} GiB per device, {needed / 2**30:.3g} of it temporary"
    known = [x for x in map(free_bytes, mesh.local_devices) if x is not None]
    if not known:
        return line, True
    fits = total <= min(known)
    return f"{line}; {min(known) / 2**30:.3g} GiB are free{'' if fits else ': too large'}", fits
