"""Times pairs of programs that take turns in one process; prints medians and ratios.

    python tools/benchmark.py [--json=PATH] [--only=train_step,...]
    python tools/benchmark.py --presets=all --repeats=3
    python tools/benchmark.py --config=configs/gpu_smoke.py --repeats=3
    python tools/benchmark.py --only=rivals --trl=PYTHON --tunix=PYTHON --repeats=2

The second form compares the train step of every preset with PPO's, and does nothing else; on two
CPU cores it takes about ten minutes. `_benchmark/presets.py` says how to read its table. The third
one times sampling and training of a configuration, on its mesh and with random weights, and does
nothing else; `_benchmark/configuration.py` says what its figures are. The fourth one compares whole
iterations of GRPO with those of other trainers, in processes and environments of their own;
`_benchmark/rivals.py` says which environments it needs.

Absolute times depend on the machine; ratios of programs that take turns depend on it much less.
"""

import dataclasses
import functools
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
from _benchmark import (
    configuration,
    language_model,
    packing,
    partial_rollouts,
    presets,
    rivals,
    verifiers,
)
from _benchmark.rollouts import made_up
from _benchmark.timing import alternate
from absl import flags

from dfpo_jax.algorithms import compose
from dfpo_jax.critics import flow_inference
from dfpo_jax.models import value_flow
from dfpo_jax.models.config import TransformerConfig
from dfpo_jax.models.transformer import Transformer
from dfpo_jax.sharding import create_mesh
from dfpo_jax.training import command_line
from dfpo_jax.training.checkpoint import Checkpointer
from dfpo_jax.training.config import Config, OptimizerConfig, parse_config
from dfpo_jax.training.learner import Learner
from dfpo_jax.training.optim import make_optimizer
from dfpo_jax.training.update import Schedule
from dfpo_jax.types import Rollout, rollout_of

_CONFIG = command_line.define_config(required=False)
_JSON = flags.DEFINE_string("json", None, "Also write the rows to this file.")
_ONLY = flags.DEFINE_list("only", [], "Names of benchmarks to run; all by default.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed runs of each program.", lower_bound=1)
_PRESETS = flags.DEFINE_list("presets", [], "Presets to compare with PPO, or 'all'.")
_SIZES = {
    field.name: flags.DEFINE_integer(
        field.name, field.default, f"Of --presets: {words}.", lower_bound=1
    )
    for field, words in zip(
        dataclasses.fields(presets.Sizes),
        ("prompts", "responses per prompt", "tokens of a prompt", "tokens of a response"),
        strict=True,
    )
}

_PYTHONS = {
    name: flags.DEFINE_string(
        name, None, f"Of the benchmark rivals: the Python of an environment with {package}."
    )
    for name, package in rivals.RIVALS.items()
}
_WORKS = flags.DEFINE_list("works", rivals.DEFAULT, "Of the benchmark rivals: names of its work.")


def _rollout(config: TransformerConfig, rows: int, prompt: int, response: int) -> Rollout:
    """A made-up rollout of one response per prompt."""
    shapes = rollout_of(jax.ShapeDtypeStruct, rows, prompt, response)
    return made_up(shapes, config.vocab_size)


def _learner(model: Transformer, source: dict) -> Learner:
    """One of an algorithm, whose optimizers have their defaults.

    Args:
      model: the policy.
      source: what `parse_config` makes the algorithm's settings of.
    """
    optimizer = make_optimizer(OptimizerConfig(), 100)
    optimizers = {"policy": optimizer, "critic": optimizer}
    algorithm = compose(model, parse_config(source).algorithm_config(), 1.0)
    return Learner(model, algorithm, optimizers, Schedule(), create_mesh())


def train_step(repeats: int) -> dict:
    """One train step (targets and advantages, then the update) of DFPO against PPO.

    Policy and critic each have a trunk of 21.3M parameters; same batch, settings of the presets.
    """
    config = presets.POLICY
    model, rollout = Transformer(config), _rollout(config, 8, 32, 96)
    names, states, learners = ("ppo", "dfpo"), {}, {}
    for name in names:
        learners[name] = _learner(model, {"algorithm": name})
        states[name] = learners[name].start(jax.random.key(0))

    def step(name):
        prepared = learners[name].prepare(states[name], rollout)
        states[name], _ = learners[name].update(states[name], *prepared)
        return states[name]

    times = alternate({name: functools.partial(step, name) for name in names}, repeats)
    size = sum(x.size for x in jax.tree.leaves(states["ppo"].params["policy"]))
    return {"trunk_parameters": size, **times, "dfpo/ppo": times["dfpo"] / times["ppo"]}


def inference(repeats: int) -> dict:
    """Sampling a value flow: 16 Euler steps against one step of the flow map."""
    head = value_flow.ValueFlow()
    features = jax.random.normal(jax.random.key(0), (64, 64, 448))
    noise = flow_inference.noise_grid((64, 64), 32)
    params = head.init(jax.random.key(1), features[:1, :1], noise[:1, :1], 0.0, 0.0)
    params = jax.tree.map(lambda x: x + 0.01, params)
    condition = head.apply(params, features, method="condition")
    evaluations = 0

    def velocity(params, condition):
        def field(z, t, d):
            nonlocal evaluations
            evaluations += 1
            return head.apply(params, condition, z, t, d, method="velocity")

        return field

    def euler(params, condition, noise):
        field = velocity(params, condition)
        return flow_inference.solve(field, noise, num_steps=16, solver="euler")

    def one_step(params, condition, noise):
        return flow_inference.one_step(velocity(params, condition), noise)

    counts, programs = {}, {}
    for name, program in {"euler_16": euler, "one_step": one_step}.items():
        evaluations = 0
        with jax.disable_jit():  # loops then run in Python, so every evaluation counts
            program(params, condition[:1, :1], noise[:1, :1])
        counts[f"velocity_evaluations_{name}"] = evaluations
        programs[name] = functools.partial(jax.jit(program), params, condition, noise)
    times = alternate(programs, repeats)
    return {**times, **counts, "euler_16/one_step": times["euler_16"] / times["one_step"]}


def _resident_bytes() -> int:
    """Current resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Peak:
    """The largest increase of resident memory inside the context."""

    def __enter__(self):
        self._start = self._most = _resident_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._done.set()
        self._thread.join()
        self.bytes = self._most - self._start

    def _watch(self):
        while not self._done.wait(0.01):
            self._most = max(self._most, _resident_bytes())


def checkpoint(repeats: int) -> dict:
    """Saving the state of DFPO, for a decoder of SmolLM2-135M's shape, between train steps.

    `stall` is how long `save` blocks the training thread, and `step` the time of a train step of
    512 tokens; their ratio assumes one save every 10 steps. Host memory is given as a multiple of
    the state's size, and includes the state's arrays, which are on the host here.
    """
    config = TransformerConfig(49152, 576, 30, 9, 3, 64, 1536, norm_eps=1e-5)
    learner = _learner(Transformer(config), {"critic": {"trunk": "detached"}})
    rollout = _rollout(config, 4, 32, 96)
    jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(1))())
    with _Peak() as with_state:
        state = jax.block_until_ready(learner.start(jax.random.key(0)))
    size = sum(x.nbytes for x in jax.tree.leaves(state.replace(key=None)))
    stalls, steps = [], []
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = Checkpointer(directory)
        with _Peak() as with_save:
            checkpoints.save(state)
            checkpoints.close()
        checkpoints = Checkpointer(directory)
        for turn in range(repeats + 1):
            start = time.perf_counter()
            state, _ = learner.update(state, *learner.prepare(state, rollout))
            jax.block_until_ready(state)
            saved = time.perf_counter()
            checkpoints.save(state)
            if turn > 0:
                steps.append(saved - start)
                stalls.append(time.perf_counter() - saved)
        checkpoints.close()
    stall, step = statistics.median(stalls), statistics.median(steps)
    return {
        "state_bytes": size,
        "host_bytes/state_bytes": (max(with_state.bytes, size) + with_save.bytes) / size,
        "stall": stall,
        "step": step,
        "stall/10_steps": stall / (10 * step),
    }


BENCHMARKS = {
    "train_step": train_step,
    "inference": inference,
    "checkpoint": checkpoint,
    **language_model.BENCHMARKS,
    **packing.BENCHMARKS,
    **partial_rollouts.BENCHMARKS,
    **verifiers.BENCHMARKS,
}


def _is_chosen(name: str) -> bool:
    return not _PRESETS.value and not _CONFIG.value and (not _ONLY.value or name in _ONLY.value)


def _check_flags() -> list[str]:
    """The presets to compare; none where benchmarks run.

    Raises:
      ValueError: a flag names what there is not, or nothing would read it.
    """
    known = [*BENCHMARKS, "rivals"]
    for name in sorted(set(_ONLY.value) - set(known)):
        raise ValueError(f"--only={name}: there are {', '.join(known)}")
    for flag in (*_PYTHONS.values(), _WORKS):
        if flag.present and not _is_chosen("rivals"):
            raise ValueError(f"--{flag.name} is of the benchmark rivals, which is not to run")
    if sum(map(bool, (_PRESETS.value, _ONLY.value, _CONFIG.value))) > 1:
        raise ValueError("--presets, --only and --config exclude each other; give one of them")
    for name, flag in _SIZES.items():
        if flag.present and not _PRESETS.value:
            raise ValueError(f"--{name} is a size of --presets, which is missing")
    return presets.chosen(_PRESETS.value)


def _compare_presets(names: list[str], configs: dict[str, Config]) -> list[dict]:
    """The rows of the table, printed one by one."""
    print(presets.HEADER, flush=True)
    rows = []
    for row in presets.compare(names, configs, _REPEATS.value):
        rows.append(row)
        print(presets.line(row), flush=True)
    return rows


def _compare_rivals(pythons: dict[str, str], works: dict[str, rivals.Work]) -> list[dict]:
    """The rows of the table, printed one by one; a line for each rival that is left out."""
    for name in rivals.RIVALS:
        if name not in pythons:
            print(f"rivals: {name} is left out, as --{name} is not given", flush=True)
    if pythons:
        print(rivals.HEADER, flush=True)
    rows = []
    for row in rivals.compare(pythons, works, _REPEATS.value):
        rows.append(row)
        print(rivals.line(row), flush=True)
    return rows


def _show(name: str, row: dict[str, float]) -> None:
    print(f"{name}: {', '.join(f'{k} {v:.4g}' for k, v in row.items())}", flush=True)


def main():
    """Run the chosen benchmarks and print a line for each.

    Exits with code 1 where a rival could not be compared.
    """
    rows = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    sizes = presets.Sizes(**{name: flag.value for name, flag in _SIZES.items()})
    with command_line.user_errors():
        names = _check_flags()
        configs = presets.configurations(names, sizes) if names else {}
        pythons = rivals.environments({name: flag.value for name, flag in _PYTHONS.items()})
        works = rivals.chosen(_WORKS.value)
        if _CONFIG.value:
            programs = configuration.programs_of(parse_config(_CONFIG.value))
    if names:
        rows |= {"sizes": dataclasses.asdict(sizes), "presets": _compare_presets(names, configs)}
    if _CONFIG.value:
        rows["configuration"] = configuration.configuration(programs, _REPEATS.value)
        _show("configuration", rows["configuration"])
    for name, benchmark in BENCHMARKS.items():
        if _is_chosen(name):
            rows[name] = benchmark(_REPEATS.value)
            _show(name, rows[name])
    if _is_chosen("rivals"):
        rows["rivals"] = _compare_rivals(pythons, works)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(rows, indent=2))
    if any("error" in row for row in rows.get("rivals", ())):
        sys.exit(1)


if __name__ == "__main__":
    command_line.run(main)
