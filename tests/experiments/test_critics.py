"""The critic laboratory: its figures against closed forms, its truth, and a run that goes on."""

import json

import numpy as np
import pytest
from _critics import data, scores, truth
from _critics.rows import CRITICS, chosen, rows_of
from critics import build, open_laboratory, policy_evaluation
from tiny_run import tiny

from dfpo_jax import ops
from dfpo_jax.algorithms import PRESETS
from dfpo_jax.training.config import default_config, parse_config
from dfpo_jax.types import Generation, Rollout


def bernoulli(states=4000, continuations=8, seed=0):
    """Success probabilities of states and their returns."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(size=states)
    return p, (rng.uniform(size=(states, continuations)) < p[:, None]).astype(np.float64)


def test_the_ceiling_is_what_the_true_means_explain():
    p, returns = bernoulli()
    # Var(p) / Var(G) of a uniform p: (1 / 12) / (1 / 4).
    assert scores.ceiling(returns) == pytest.approx(1 / 3, abs=0.02)
    assert scores.explained(p, returns) == pytest.approx(1 / 3, abs=0.02)
    assert scores.explained(np.full(len(p), 0.7), returns) == pytest.approx(0.0)
    # The means of the continuations themselves seem to explain more than can be explained.
    assert scores.explained(returns.mean(axis=1), returns) > scores.ceiling(returns) + 0.05
    alike = np.repeat([[0.0], [1.0]], 3, axis=1)
    assert scores.ceiling(alike) == 1.0 and scores.ceiling(np.ones((2, 3))) == 0.0


def test_scores_of_laws_equal_those_of_the_ops():
    rng = np.random.default_rng(1)
    law, returns = np.sort(rng.normal(size=(6, 5)), axis=1), rng.normal(size=(6, 5))
    each = [ops.crps(law, returns[:, n]) for n in range(5)]
    assert scores.crps(law, returns) == pytest.approx(np.mean(each), rel=1e-5)
    wanted = float(np.mean(ops.wasserstein1(law, np.sort(returns, axis=1))))
    assert scores.wasserstein1(law, returns) == pytest.approx(wanted, rel=1e-5)
    # Repeating every point changes no law.
    repeated = np.repeat(law, 3, axis=1), np.repeat(returns, 2, axis=1)
    assert scores.wasserstein1(*repeated) == pytest.approx(wanted, rel=1e-5)
    assert scores.crps(repeated[0], returns) == pytest.approx(np.mean(each), rel=1e-5)


def test_calibrated_states_have_no_error_and_shifted_ones_their_shift():
    p, returns = bernoulli()
    assert scores.calibration_error(p, returns) < 0.01
    assert scores.calibration_error(p + 0.2, returns) == pytest.approx(0.2, abs=0.01)
    law = np.sort(np.random.default_rng(2).normal(size=(50, 400)), axis=1)
    assert scores.coverage(law, law) == pytest.approx(0.9, abs=0.01)


def test_chosen_states_lie_in_every_third_once():
    row, index, place = truth.places(np.array([9, 1, 0, 2]))
    found = list(zip(row, index, place, strict=True))
    assert found == [(0, 0, 0), (0, 1, 1), (0, 4, 2), (0, 7, 3), (1, 0, 0), (3, 0, 0), (3, 1, 2)]


def test_a_prefix_and_its_continuation_make_the_response():
    tokens = np.array([[5, 6, 7, 0], [8, 9, 0, 0]], np.int32)
    ones, zeros = np.ones((2, 4), np.float32), np.zeros(2, np.float32)
    prompt = np.array([[0, 3], [3, 4]], np.int32)
    has = np.array([[0, 1], [1, 1]], np.float32)
    rollout = Rollout(prompt, has, tokens, ones, 0 * ones, zeros, zeros, zeros, np.arange(2))
    row, index = np.array([0, 1, 1]), np.array([2, 0, 1])
    prefix, mask = truth._prefixes(rollout, row, index, pad=0)
    assert prefix.tolist() == [[0, 0, 0, 3, 5, 6], [0, 0, 0, 0, 3, 4], [0, 0, 0, 3, 4, 8]]
    assert mask.tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    more = np.array([[11, 12, 13, 14], [21, 1, 0, 0], [31, 32, 1, 0]], np.int32)
    length = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], np.float32)
    none = np.array([True, False, False])
    whole = truth._joined(rollout, row, index, Generation(more, length, 0 * length, none))
    assert whole.tokens.tolist() == [[5, 6, 11, 12], [21, 1, 0, 0], [8, 31, 32, 1]]
    assert whole.mask.sum(axis=1).tolist() == [4, 2, 4]
    assert whole.truncated.tolist() == [True, False, False]


def test_every_row_is_a_configuration_and_names_are_checked():
    config = policy_evaluation(default_config())
    table = rows_of(config)
    for settings in table.values():
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(settings)
        assert parse_config(changed).critic.name == settings["critic.name"]
    critics = {PRESETS[name].get("critic.name", "flow") for name in PRESETS} - {"none"}
    assert critics <= {settings["critic.name"] for settings in CRITICS.values()}
    assert chosen(["critics", "scalar"], table) == list(CRITICS)
    with pytest.raises(ValueError, match="rows has 'flow'; it must be critics, all, or of scalar"):
        chosen(["flow"], table)


def test_a_directory_keeps_what_it_was_drawn_with(tmp_path):
    data.check_directory(tmp_path / "lab", {"prompts": 4, "policy": None})
    data.check_directory(tmp_path / "lab", {"prompts": 4, "policy": None})
    with pytest.raises(ValueError, match="holds rollouts whose prompts is 4; here it is 8: name"):
        data.check_directory(tmp_path / "lab", {"prompts": 8, "policy": None})
    path, made = tmp_path / "x.npz", {"a": np.arange(3), "b": np.ones(2)}
    assert data.kept(path, made, lambda: made)["a"].tolist() == [0, 1, 2]
    assert data.kept(path, made, None)["b"].tolist() == [1, 1]  # nothing is made again
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"x.npz is damaged .* delete it to have it made again"):
        data.kept(path, made, None)


@pytest.mark.slow
def test_a_stopped_laboratory_goes_on_with_equal_rows(tmp_path):
    base = policy_evaluation(tiny(keep_states=True), **{"evaluation.prompts": 8})
    table = rows_of(base)
    variants = {name: policy_evaluation(base, **table[name]) for name in ("scalar", "dfpo")}
    options = dict(source=None, prompts=8, continuations=3, rollouts=2, seed=1)

    def rows(directory):
        found = open_laboratory(base, tmp_path / directory, **options).rows(variants, [1e-2])
        return ({k: x for k, x in row.items() if k != "milliseconds"} for row in found)

    whole = list(rows("whole"))
    assert [row["row"] for row in whole] == ["scalar", "dfpo"]
    assert next(rows("parts")) == whole[0]  # stopped before the second
    assert list(rows("parts")) == whole
    lines = [json.loads(line) for line in (tmp_path / "parts" / "rows.jsonl").open()]
    assert [row["key"] for row in lines] == [row["key"] for row in whole]
    figures = whole[1]["places"]
    assert {"all", "prompt", "last third"} <= set(figures) <= {"all", *truth.PLACES}
    assert figures["all"]["explained"] <= 1.0 and 0.0 < figures["all"]["crps"] < 1.0


@pytest.mark.parametrize(
    "setting, value, words",
    [
        ("returns.overlong", "mask", "returns.overlong is 'mask'; here it must be 'terminal'"),
        ("rewards.votes.samples", 2, "config.rewards has votes or a learned reward model"),
    ],
)
def test_what_has_no_truth_is_refused(setting, value, words):
    with pytest.raises(ValueError, match=words):
        build(policy_evaluation(tiny(), **{setting: value}))
