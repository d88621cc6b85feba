"""Compile the programs of a configuration for a TPU slice that need not be there.

    python tools/compile_for_tpu.py --config=configs/qwen3_8b_math_v5p64.py --topology=v5p:4x4x4

The TPU's own compiler runs on this machine's CPU; no weights, no tokenizer and no arrays are
needed. It comes with libtpu: install that in an environment of its own (pip install libtpu), since
JAX takes a machine with libtpu for a TPU host. Prompts have `train.prompt_length` slots; programs
for smaller `train.prompt_buckets` need less.

Printed per program and chip: bytes of arguments, temporaries, results that do not take the place of
an argument, code, and of what else of the train state lies beside them ("resident"); their sum
("peak") and the share of the chip's memory that it leaves; FLOPs, bytes between chip and memory,
bytes sent to other chips by kind of collective; the time that the largest of the three takes at the
chip's peak rate ("at least"), and which it is: MXU, HBM or ICI. `_tpu/costs.py` says how they are
counted (loops as often as they run), `_tpu/chips.py` has the chips' figures. ICI time takes all
links of a chip as busy; collectives along one mesh axis get less.

Exit code: 0 if every program fits, 1 if not, 2 for a wrong flag or a missing compiler.
"""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from absl import flags
from ml_collections import config_flags

FLAGS = flags.FLAGS
PARTS = ("arguments", "temporaries", "results", "code", "resident")


def define_flags() -> None:
    """Not at import: flags are global, and tests import this file."""
    config_flags.DEFINE_config_file("config", None, "Configuration file, NAME.py[:argument].")
    flags.DEFINE_string("topology", None, "Chip and sizes, such as v5p:4x4x4 or v6e:2x4.")
    flags.DEFINE_list("programs", ["prefill", "decode", "train"], "Also: prepare.")
    flags.DEFINE_string("json", None, "Also write the figures to this file.")
    flags.DEFINE_string("text", None, "Also keep the compiled programs' text in this directory.")
    flags.mark_flags_as_required(["config", "topology"])


def prepare_environment() -> None:
    """Keeps libtpu from asking for a host's TPU, and JAX on the CPU; before JAX is imported."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["TPU_ACCELERATOR_TYPE"] = "v5p-8"  # any will do: the topology says what to build for
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["JAX_PLATFORMS"] = "cpu"


def topology_devices(topology: str):
    """The chips of a slice as devices to compile for.

    Raises:
      ValueError: a topology that does not exist.
    """
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices
    except Exception as error:  # whatever the plugin raises, it is about this topology
        raise ValueError(f"topology {topology!r}: {str(error).splitlines()[0]}") from error


def compile_program(lowering, name: str, keep: str | None = None) -> dict:
    """Compiles one program; its figures, or {"error": ...} where it does not fit."""
    import jax
    from _tpu.costs import program_costs

    start = time.perf_counter()
    lowered = lowering.lower(name)
    lower_seconds, start = time.perf_counter() - start, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return {"error": used_line(str(error)), "compile_seconds": time.perf_counter() - start}
        seconds = time.perf_counter() - start
        (text,) = Path(folder).glob("*after_optimizations.txt")
        costs = program_costs(text.read_text())
        if keep is not None:
            shutil.copy(text, Path(keep) / f"{name}.txt")
    memory = compiled.memory_analysis()
    figures = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "resident": lowering.resident(name),
    }
    figures["peak"] = sum(v for k, v in figures.items() if k != "aliased")
    counted = dataclasses.asdict(costs) | {"sent": dict(costs.sent)}
    return figures | counted | {"lower_seconds": lower_seconds, "compile_seconds": seconds}


def used_line(message: str) -> str:
    """Of the compiler's words on memory those that say how much there is and is asked for."""
    found = re.search(r"Used [^.]*\.\w+ of [^.]*\.\w+ \w+", message)
    return found.group(0) if found else message.splitlines()[0][:200]


def judge(figures: dict, chip) -> dict:
    """Adds what the chip makes of the figures: share of memory left, least time, what bounds it."""
    from _tpu.chips import roofline

    if "error" in figures:
        return figures | {"fits": False}
    seconds, bound = roofline(
        chip, figures["flops"], figures["hbm_bytes"], sum(figures["sent"].values())
    )
    spare = 1.0 - figures["peak"] / chip.hbm_bytes
    return figures | {"fits": spare >= 0, "spare": spare, "seconds": seconds, "bound": bound}


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
    return (
        f"{name}: peak {gib['peak']:.2f} GiB, {x['spare']:.0%} spare ({parts})\n"
        f"  {x['flops'] / 1e12:.4g} TFLOP, {x['hbm_bytes'] / 1e9:.4g} GB memory traffic, sends GB: "
        f"{sent}\n"
        f"  at least {x['seconds'] * 1e3:.4g} ms ({x['bound']}); compiled in "
        f"{x['compile_seconds']:.0f} s{notes}"
    )


def run(config, topology: str, programs: list[str], keep: str | None = None) -> dict[str, dict]:
    """Compiles the programs for the slice and prints their figures: name -> figures."""
    from _tpu.chips import CHIPS
    from _tpu.programs import Lowering

    from dfpo_jax.sharding import create_mesh

    if config.model.attention == "auto":  # what it becomes on a TPU host
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, attention="pallas_tpu")
        )
    devices = topology_devices(topology)
    mesh = create_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=devices)
    lowering = Lowering(config, mesh)
    chip = CHIPS[topology.partition(":")[0]]
    print(
        f"{topology}: {len(devices)} chips of {chip.hbm_bytes / 2**30:.0f} GiB, mesh "
        f"{', '.join(f'{k}={v}' for k, v in mesh.shape.items())}",
        flush=True,
    )
    results = {}
    for name in programs:
        results[name] = judge(compile_program(lowering, name, keep), chip)
        print(describe(name, results[name]), flush=True)
    return results


def main(argv) -> None:
    """Compiles, prints, and exits with 1 where a program does not fit."""
    from _tpu.chips import parse_topology

    from dfpo_jax.training import command_line

    with command_line.user_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; options start with --")
        parse_topology(FLAGS.topology)
        if importlib.util.find_spec("libtpu") is None:
            raise ValueError("no TPU compiler: pip install libtpu (in an environment of its own)")
        from _tpu.programs import PROGRAMS

        from dfpo_jax.training.config import parse_config

        for name in set(FLAGS.programs) - set(PROGRAMS):
            raise ValueError(f"--programs={name}: there are {', '.join(PROGRAMS)}")
        results = run(parse_config(FLAGS.config), FLAGS.topology, FLAGS.programs, FLAGS.text)
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(results, indent=2))
    worst = [name for name, x in results.items() if not x["fits"]]
    if worst:
        print(f"does not fit: {', '.join(worst)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    prepare_environment()  # configuration files, read with the flags, import JAX
    from dfpo_jax.training import command_line

    define_flags()
    command_line.run(main)
