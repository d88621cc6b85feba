"""Compiles the programs of a run ahead of time for given chips, and prints their needs.

The tools for TPUs and GPUs share this file, from their flags to their exit code.
"""

import dataclasses
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from _ahead.chips import Chip, roofline
from _ahead.costs import program_costs
from _ahead.programs import PROGRAMS, Lowering
from absl import flags
from jax.sharding import Mesh

from dfpo_jax.memory import compiled
from dfpo_jax.models import pretrained
from dfpo_jax.sharding import create_mesh
from dfpo_jax.training import command_line, compilation_cache
from dfpo_jax.training.config import Config, parse_config

FLAGS = flags.FLAGS
PARTS = ("arguments", "temporaries", "results", "code", "resident")


def define_flags() -> None:
    """Defines the flags of both tools; not at import, since tests import this file."""
    command_line.define_config()
    flags.DEFINE_list("programs", ["prefill", "decode", "train"], "Also: sample, prepare.")
    flags.DEFINE_string("json", None, "Also write the figures to this file.")
    flags.DEFINE_integer("traffic", 0, "Also print that many parts with most memory traffic.")
    flags.DEFINE_string("text", None, "Also keep the compiled programs' text in this directory.")


def main(target: Callable[[], tuple[Sequence, Chip]], attention: str) -> None:
    """Compiles the programs in the flags, prints figures, and exits with 1 if one does not fit.

    Args:
      target: returns the devices to compile for and the figures of one; raises ValueError if there
        are none.
      attention: the back end that "auto" means on such a device, since this process runs on a CPU.
    """
    compilation_cache.set_up("")  # the figures are read from what the compiler writes as it works
    with command_line.user_errors():
        devices, chip = target()
        for name in set(FLAGS.programs) - set(PROGRAMS):
            raise ValueError(f"--programs={name}: there are {', '.join(PROGRAMS)}")
        config = parse_config(FLAGS.config)
        if config.model.attention == "auto":
            model = dataclasses.replace(config.model, attention=attention)
            config = dataclasses.replace(config, model=model)
        axes = config.mesh
        mesh = create_mesh(axes.data, axes.fsdp, axes.tensor, devices=devices)
        results = run(config, mesh, chip, FLAGS.programs, FLAGS.text, FLAGS.traffic)
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(results, indent=2))
    worst = [name for name, x in results.items() if not x["fits"]]
    if worst:
        print(f"does not fit: {', '.join(worst)}", file=sys.stderr)
        sys.exit(1)


def compile_program(lowering: Lowering, name: str, keep: str | None = None) -> dict:
    """Compiles one program; returns its figures, or {"error": ...} if it does not fit."""
    start = time.perf_counter()
    lowered = lowering.lower(name)
    lower_seconds, start = time.perf_counter() - start, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            program = compiled(lowered, lowering.mesh.devices.flat, **options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return {"error": used_line(str(error)), "compile_seconds": time.perf_counter() - start}
        seconds = time.perf_counter() - start
        (text,) = Path(folder).glob("*after_optimizations.txt")
        costs = program_costs(text.read_text())
        if keep is not None:
            shutil.copy(text, Path(keep) / f"{name}.txt")
    memory = program.memory_analysis()
    figures = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "resident": lowering.resident(name),
    }
    figures["peak"] = sum(v for k, v in figures.items() if k != "aliased")
    counted = dataclasses.asdict(costs)
    counted |= {"sent": dict(costs.sent), "traffic": dict(costs.traffic.most_common())}
    return figures | counted | {"lower_seconds": lower_seconds, "compile_seconds": seconds}


def used_line(message: str) -> str:
    """The part of the compiler's message that gives the memory used and available."""
    found = re.search(r"Used [^.]*\.\w+ of [^.]*\.\w+ \w+", message)
    return found.group(0) if found else message.splitlines()[0][:200]


def judge(figures: dict, chip: Chip, tokens: float = 0.0) -> dict:
    """Adds to the figures what the chip makes of them.

    Whether they fit, the share of memory that is left, the least time and its limit, and the share
    of the chip's FLOP rate that this time leaves to reach.

    Args:
      figures: of a program, per chip.
      chip: that runs it.
      tokens: slots of its sequences per chip, for "tokens_per_second"; 0 without.
    """
    if "error" in figures:
        return figures | {"fits": False}
    sent = sum(figures["sent"].values())
    seconds, bound = roofline(chip, figures["flops"], figures["hbm_bytes"], sent)
    spare = 1.0 - figures["peak"] / chip.hbm_bytes
    share = figures["flops"] / chip.flops / seconds
    found = {"fits": spare >= 0, "spare": spare, "seconds": seconds, "bound": bound, "share": share}
    return figures | found | ({"tokens_per_second": tokens / seconds} if tokens else {})


def describe(name: str, x: dict) -> str:
    """The lines printed for a program."""
    if "error" in x:
        return f"{name}: does not fit: {x['error']} ({x['compile_seconds']:.0f} s)"
    gib = {k: x[k] / 2**30 for k in (*PARTS, "peak")}
    parts = ", ".join(f"{k} {gib[k]:.2f}" for k in PARTS)
    sent = ", ".join(f"{k} {v / 1e9:.3g}" for k, v in sorted(x["sent"].items())) or "nothing"
    notes = ""
    if x["unknown_loops"] or x["unknown_kernels"]:
        notes = (
            f"\n  counted too low: {x['unknown_loops']} loops once, {x['unknown_kernels']} kernels "
            "without FLOPs"
        )
    rate = f"{x['share']:.2f} of the FLOP rate"
    if "tokens_per_second" in x:
        rate += f", {x['tokens_per_second']:,.0f} tokens/s"
    return (
        f"{name}: peak {gib['peak']:.2f} GiB, {x['spare']:.0%} spare ({parts})\n"
        f"  {x['flops'] / 1e12:.4g} TFLOP, {x['hbm_bytes'] / 1e9:.4g} GB memory traffic, sends GB: "
        f"{sent}\n"
        f"  at least {x['seconds'] * 1e3:.4g} ms ({x['bound']}), {rate}; compiled in "
        f"{x['compile_seconds']:.0f} s{notes}"
    )


def describe_traffic(x: dict, most: int) -> str:
    """The parts of a program with most memory traffic, one a line."""
    parts = list(x.get("traffic", {}).items())[:most]
    return "".join(f"  {size / 1e9:8.4g} GB  {part}\n" for part, size in parts)


def with_sizes(config: Config) -> Config:
    """The run with the sizes of its weights, or of `config.model` if a hub has the weights.

    Raises:
      ImportError, ValueError: as `WeightsConfig.model_config`.
    """
    source = config.weights.source
    if source and not pretrained.is_gguf(source) and not Path(source).exists():
        print(f"sizes are those of config.model, not read from {source}: nothing is downloaded")
        return config
    return dataclasses.replace(config, model=config.weights.model_config(config.model))


def run(
    config: Config,
    mesh: Mesh,
    chip: Chip,
    programs: list[str],
    keep: str | None = None,
    traffic: int = 0,
) -> dict[str, dict]:
    """Compiles the programs for the mesh and prints their figures: name -> figures.

    Args:
      config: the run; its model's `attention` names a back end of the chip.
      mesh: devices to compile for.
      chip: the figures of one device.
      programs: names from `PROGRAMS`.
      keep: a directory for the compiled programs' text, or None.
      traffic: how many parts with most memory traffic are printed of each.
    """
    lowering = Lowering(with_sizes(config), mesh)
    print(
        f"{mesh.size} chips of {chip.hbm_bytes / 2**30:.0f} GiB, mesh "
        f"{', '.join(f'{k}={v}' for k, v in mesh.shape.items())}",
        flush=True,
    )
    results = {}
    for name in programs:
        slots = lowering.slots(name) / mesh.size
        results[name] = judge(compile_program(lowering, name, keep), chip, slots)
        print(describe(name, results[name]), flush=True)
        print(describe_traffic(results[name], traffic), end="", flush=True)
    return results
