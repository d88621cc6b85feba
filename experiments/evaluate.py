"""Evaluate a checkpoint: greedy pass@1 and pass@k on clean held-out data.

    python experiments/evaluate.py --workdir=runs/quickstart --k=1,4,16

It reads config.json and a checkpoint from a directory of `experiments/train.py`, and prints a
table; `--json=PATH` also writes the figures to a file.
"""

import json
from pathlib import Path

import jax
from absl import flags

from dfpo_jax.training import command_line
from dfpo_jax.training.evaluate import greedy_accuracy, pass_at_k
from dfpo_jax.training.restore import load_run

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a run.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Iteration; the newest intact checkpoint by default.")
_K = flags.DEFINE_list("k", ["1", "4", "16"], "Values of k for pass@k, sampled as in training.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.")
_JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def main():
    """Evaluate and print."""
    with command_line.user_errors():
        if not all(k.isdigit() and int(k) > 0 for k in _K.value):
            raise ValueError(f"k is {','.join(_K.value)}; it must be positive integers")
        run, state = load_run(_WORKDIR.value, _STEP.value)
    ks = sorted(int(k) for k in _K.value)
    rows = {"step": int(state.step)}
    for name, held_out in run.evaluations.items():
        policy = (held_out.sampler, state.params["policy"], held_out.task, held_out.items)
        key = jax.random.key(_SEED.value)
        accuracy, _, _ = greedy_accuracy(*policy, key)
        sampled = pass_at_k(*policy, key, samples=ks[-1], ks=ks)
        rows[name] = {"items": len(held_out.items), "greedy": accuracy}
        rows[name] |= {f"pass@{k}": value for k, value in sampled.items()}
        figures = ", ".join(f"{k} {v:.1%}" for k, v in rows[name].items() if k != "items")
        print(f"{name} ({len(held_out.items)} items, iteration {rows['step']}): {figures}")
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    command_line.run(main)
