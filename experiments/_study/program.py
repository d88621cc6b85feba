"""What `compare.py` and `ablate.py` do with their flags."""

import random
import shutil
import sys
from pathlib import Path

from absl import flags

from dfpo_jax.training import command_line

FLAGS = flags.FLAGS
CONFIG = command_line.define_config(required=False)
_FILES = {"compare": "results.jsonl", "ablate": "ablation.jsonl"}
_RIVALS = ["ppo", "ppo_clipped", "grpo", "dvpo"]
flags.DEFINE_string("workdir", None, "Directory of the study; created if missing.")
flags.DEFINE_string("results", None, "File of rows; by default one in the workdir.")
flags.DEFINE_integer("workers", 0, "Processes; 0 for as many as cores, or one on a GPU or TPU.", 0)
flags.DEFINE_string("only", "", "Cells to run: algorithm=dfpo,noise=flip,seed=0.")
flags.DEFINE_bool("list", False, "Show the cells that are left and the time they take.")
flags.DEFINE_bool("report", False, "Make the report from the rows, without running a cell.")
flags.DEFINE_integer("check", 0, "Run so many finished cells again, and compare their rows.", 0)
flags.DEFINE_string("reference", None, "The algorithm that others are compared with.")
flags.DEFINE_list("rivals", _RIVALS, "Of whose tolerances the best is compared with it.")


def main(kind: str) -> None:
    """Run a study, or list, check or report it.

    Args:
      kind: a key of `_FILES`.
    """
    with command_line.user_errors():
        if not (FLAGS.workdir or FLAGS.results):
            raise ValueError("--workdir must be set, or --results with --report or --list")
        modes = [name for name in ("list", "report", "check") if getattr(FLAGS, name)]
        if len(modes) > 1:
            raise ValueError(f"--{modes[0]} and --{modes[1]} cannot be combined")
        if not FLAGS.config and not FLAGS.report:
            raise ValueError("--config must be set, except with --report")
        if not FLAGS.workdir and not (FLAGS.report or FLAGS.list):
            raise ValueError("--workdir must be set to run cells")
        results = Path(FLAGS.results or Path(FLAGS.workdir) / _FILES[kind])
        if FLAGS.report and not results.exists():
            raise FileNotFoundError(f"there is no file {results}")
        import jax

        jax.config.update("jax_platforms", "cpu")  # a GPU's memory is for the workers
        from _study import grid

        make = {"compare": grid.comparison, "ablate": grid.ablation}[kind]
        study = make(FLAGS.config) if FLAGS.config else None
        only = grid.parse_only(FLAGS.only)
        if FLAGS.report:
            return _report(kind, study, results)
        workdir = Path(FLAGS.workdir) if FLAGS.workdir else None
        if FLAGS.list:
            return _list(study, results, only)
        workdir.mkdir(parents=True, exist_ok=True)
        failed = _work(study, workdir, results, only)
        if results.exists() and not FLAGS.check:
            _report(kind, study, results)
    if failed:
        print("\n".join(f"failed: {line}" for line in failed), file=sys.stderr)
        sys.exit(1)


def _report(kind: str, study, results: Path) -> None:
    from _study import plan, report
    from _study.results import newest, read

    rows, order = read(results), ()
    if study:
        state = plan.Plan(study, rows, {})
        print(state.words(), file=sys.stderr)
        rows, order = list(state.rows.values()), list(study.algorithms)
    rows = newest(rows)
    reference = FLAGS.reference or (study.reference if study else "dfpo")
    rivals = [name for name in FLAGS.rivals if name]
    print(report.markdown(rows, reference, rivals, order))
    if FLAGS.workdir:
        page = Path(FLAGS.workdir) / f"{kind}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        title = "Algorithms under noise" if kind == "compare" else "DFPO, part by part"
        report.write(page, title, rows, reference, rivals, order)
        print(f"report: {page}", file=sys.stderr)


def _list(study, results: Path, only) -> None:
    from _study import plan, workers
    from _study.results import read

    state = plan.Plan(study, read(results), only)
    count = workers.machine().workers(FLAGS.workers)
    left = [*state.ready(), *state.waiting()]
    for cell in left:
        print(f"{cell.hash}  {cell.name}")
    print(state.words())
    hours = state.seconds(left) / count / 3600
    noun = "worker" if count == 1 else "workers"
    text = f"{len(left)} cells left, about {hours:.2g} hours with {count} {noun}"
    if not state.rows:
        text += f" if a cell takes {study.cell_seconds:g} seconds; none has been timed yet"
    print(text)


def _work(study, workdir: Path, results: Path, only) -> list[str]:
    """Run what is left, or again what is to be checked; says what failed."""
    from _study import plan, run, workers
    from _study.results import read

    from dfpo_jax.training import lock

    machine = workers.machine()
    count = machine.workers(FLAGS.workers)
    with lock.kept(workdir):
        state = plan.Plan(study, read(results), only)
        print(state.words(), file=sys.stderr)
        scratch = workdir / "cells"
        shutil.rmtree(scratch, ignore_errors=True)  # of cells that were killed
        scratch.mkdir()
        workers.set_up(machine.platform, workdir / "compiled")
        pool = workers.Pool(count, workdir / "logs", machine)
        try:
            if FLAGS.check:
                again = random.sample(state.finished(), min(FLAGS.check, len(state.finished())))
                return run.check(pool, workdir, study, again, state.rows)
            return run.run(pool, workdir, results, state)
        finally:
            pool.close()
