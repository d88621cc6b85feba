"""Critics on a token MDP whose return distributions are known exactly.

An episode is 6 tokens out of 3. Each (position, token) has a random score; the reward after the
last token is Bernoulli(sigmoid(sum of the scores)), flipped with probability `--flip`, plus
N(0, `--noise`^2). The return of every prefix is therefore a mixture of two Gaussians, at 0 and at
1, whose weight is found by enumerating completions. Critics evaluate a fixed policy from the same
episodes; the table shows how far they are from the truth in 19 states at depths 0 to 4.

    python experiments/token_mdp.py                  # the main rows, 3 seeds
    python experiments/token_mdp.py --rows=all       # and the ablation, at lambda .95
    python experiments/token_mdp.py --rows=scalar,dfpo --updates=200 --json=rows.json
    python experiments/token_mdp.py --two_scales     # rewards of two scales, 1/2 and 20, in one MDP

Columns, in reward units and averaged over states and seeds: `w1` between the whole laws (32 atoms
for the quantile critic, which knows no more; 512 points of the flow); `w1_32` to the truth at 32
levels only; errors of the mean and of the mean of the lowest 10 %; true mass of the interval
between the 5 % and 95 % quantiles; network evaluations per sample at inference; training time.
With two scales errors are over twice the scale of the state's rewards, one line for each scale.
"""

import dataclasses
import json
import time

import jax
import numpy as np
from _token_mdp.critics import Row, evaluations, read, score, train
from _token_mdp.mdp import SCALES, by_scale, make_mdp, make_truth
from absl import flags

from dfpo_jax.critics import Flow, Quantile, Scalar
from dfpo_jax.models import ValueFlowConfig
from dfpo_jax.training import command_line

FLOW_RATE = 1.2e-2

FLAGS = flags.FLAGS
flags.DEFINE_integer("updates", 1500, "Updates of 128 fresh episodes.")
flags.DEFINE_integer("seeds", 3, "Seeds; each has its own MDP, states, episodes and parameters.")
flags.DEFINE_float("flip", 0.2, "Probability that a reward is flipped.")
flags.DEFINE_float("noise", 0.15, "Deviation of the Gaussian noise on rewards.")
flags.DEFINE_enum("policy", "uniform", ["uniform", "random"], "The policy that is evaluated.")
flags.DEFINE_bool("two_scales", False, "The first token decides between rewards of two scales.")
flags.DEFINE_string("rows", "main", 'Comma-separated names, "main" or "all".')
flags.DEFINE_string("json", None, "File for the rows of the table.")


HEAD = ValueFlowConfig(num_blocks=1)


def _flow(*readings: str, lambda_: float = 0.95, normalise: bool = True, **changes) -> Row:
    """DFPO's default losses, with changes."""
    readings = readings or ("midpoint 4", "one step")
    return Row(Flow(head=HEAD, **changes), FLOW_RATE, lambda_, normalise, readings)


def _quantile(lambda_: float, **changes) -> Row:
    return Row(Quantile(**changes), 2.4e-2, lambda_)


VALUE_FLOWS = dict(
    inference="ode",
    solver="euler",
    num_steps=10,
    first_step=1.0,
    dcfm_weight=1.0,
    dcfm_base="shift",
    geometry_weight=0.0,
    uncertainty="emphasize",
    uncertainty_temperature=0.3,
)
OFF = dict(inference="ode", geometry_weight=0.0)
MAIN = {
    "scalar": Row(Scalar(), 8e-3),
    "scalar, lambda .95": Row(Scalar(), 8e-3, 0.95),
    "quantile": _quantile(1.0),
    "quantile, kappa 1": _quantile(1.0, kappa=1.0),
    "quantile, lambda .95": _quantile(0.95),
    "quantile, average, lambda .9": _quantile(0.9, target_mode="average"),
    "value flows": _flow("Euler 10", "Euler 1 of the field", lambda_=0.0, **VALUE_FLOWS),
    "dfpo": _flow("midpoint 4", "one step", "Euler 16", "Euler 1 of the field", lambda_=1.0),
}
ABLATION = {
    "lambda .95": _flow(),
    "no dcfm": _flow(dcfm_weight=0.0),
    "no dcfm, lambda 1": _flow(lambda_=1.0, dcfm_weight=0.0),
    "no geometry": _flow("midpoint 4", **OFF),
    "reflow": _flow("midpoint 4", "Euler 1 of the field", inference="ode", geometry="reflow"),
    "straight": _flow("midpoint 4", "Euler 1 of the field", inference="ode", geometry="straight"),
    "cvar and upper gain": _flow(cvar_weight=0.1, upper_gain_weight=0.1),
    "mean shift": _flow(mean_shift_weight=0.1),
    "tail shape and curvature": _flow(tail_shape_weight=0.1, tail_curvature_weight=0.1),
    "cvar and upper gain on returns": _flow(
        cvar_weight=0.1, upper_gain_weight=0.1, tail_targets="returns"
    ),
    "emphasize": _flow(uncertainty="emphasize"),
    "discount": _flow(uncertainty="discount"),
    "not normalised": _flow(normalise=False),
    "equal steps": _flow(first_step=1.0),
    "4 samples": _flow(num_samples=4),
    "average targets, lambda .9": _flow(lambda_=0.9, target_mode="average"),
    "lambda .8": _flow(lambda_=0.8),
}
ROWS = MAIN | ABLATION


def _both(name: str, row: Row) -> dict[str, Row]:
    """A row in the affine units of the whole range of rewards, and in asinh units."""
    affine = dataclasses.replace(row, scale=SCALES[1])
    return {
        f"{name}, affine": affine,
        f"{name}, asinh": dataclasses.replace(row, scale=SCALES[0], learns="asinh"),
    }


TWO_SCALES = {
    "scalar, affine": dataclasses.replace(MAIN["scalar"], scale=SCALES[1]),
    **_both("quantile", MAIN["quantile"]),
    **_both("dfpo", _flow(lambda_=1.0)),
}


def run_row(name: str, row: Row, mdps, truths, updates: int) -> list[dict]:
    """Train on every seed and score every reading: one line of the table each."""
    train_row = jax.jit(lambda mdp, key: train(row, updates, mdp, key))
    train_row = train_row.lower(mdps[0], jax.random.key(0)).compile()
    read_row = jax.jit(lambda params, tokens, depth: read(row, params, tokens, depth))
    start = time.perf_counter()
    params = [
        jax.block_until_ready(train_row(mdp, jax.random.key(seed))) for seed, mdp in enumerate(mdps)
    ]
    seconds = time.perf_counter() - start
    scores: dict[str, list] = {}
    for mdp, truth, learned in zip(mdps, truths, params, strict=True):
        found = read_row(learned, truth.tokens, truth.depth)
        for reading in row.readings or found:  # jit sorts the keys of a dict
            for part, (where, scale) in by_scale(mdp, truth).items():
                some = jax.tree.map(lambda x, where=where: x[where], truth)
                both = (np.asarray(x, np.float64)[where] for x in found[reading])
                q, fine = (0.5 + (x - 0.5) / (2.0 * scale) for x in both)
                key = (reading, part)
                scores.setdefault(key, []).append(score(q, fine, some, mdp.noise))
    lines = []
    for (how, part), seeds in scores.items():
        reading = ", ".join(filter(None, (how, part)))
        line = {"row": name, "reading": reading, "evaluations": evaluations(how)}
        line |= {key: float(np.mean([s[key] for s in seeds])) for key in seeds[0]}
        line |= {"ms_per_update": 1e3 * seconds / updates / len(mdps), "seconds": seconds}
        lines.append(line)
    return lines


def select_rows(names: str, two_scales: bool = False) -> dict[str, Row]:
    """Rows of --rows; with `two_scales` of those in the units of that MDP.

    Raises:
      ValueError: an unknown name; the message lists what there is.
    """
    if names in ("main", "all"):
        return TWO_SCALES if two_scales else MAIN if names == "main" else ROWS
    table = TWO_SCALES if two_scales else ROWS
    # Names contain commas themselves: take the longest name that fits.
    chosen, rest = {}, names
    while rest:
        fits = [n for n in table if rest == n or rest.startswith(n + ",")]
        if not fits:
            raise ValueError(f"--rows: {rest!r} does not start with one of {', '.join(table)}")
        name = max(fits, key=len)
        chosen[name], rest = table[name], rest[len(name) + 1 :]
    return chosen


def format_line(line: dict) -> str:
    """One line of the table."""
    name = line["row"] + (f": {line['reading']}" if line["reading"] else "")
    figures = "  ".join(f"{line[k]:8.4f}" for k in ("w1", "w1_32", "mean", "cvar", "coverage"))
    return (
        f"{name:40s}  {figures}  {line['evaluations']:5d}"
        f"  {line['ms_per_update']:9.1f}  {line['seconds']:7.1f}"
    )


def main():
    """Run the chosen rows, print the table, write it as JSON."""
    with command_line.user_errors():
        rows = select_rows(FLAGS.rows, FLAGS.two_scales)
    options = {"policy": FLAGS.policy, "flip": FLAGS.flip, "noise": FLAGS.noise}
    options["two_scales"] = FLAGS.two_scales
    mdps = [make_mdp(jax.random.key(1000 + s), **options) for s in range(FLAGS.seeds)]
    truths = [make_truth(mdp, np.random.default_rng(s)) for s, mdp in enumerate(mdps)]
    titles = "  ".join(f"{k:>8s}" for k in ("w1", "w1_32", "mean", "cvar", "coverage"))
    print(f"{'critic: reading':40s}  {titles}  evals  ms/update  seconds", flush=True)
    lines = []
    for name, row in rows.items():
        for line in run_row(name, row, mdps, truths, FLAGS.updates):
            lines.append(line)
            print(format_line(line), flush=True)
    if FLAGS.json:
        with open(FLAGS.json, "w") as file:
            json.dump(lines, file, indent=1)


if __name__ == "__main__":
    command_line.run(main)
