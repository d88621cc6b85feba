"""The study of SmolLM2: every algorithm and noise of it is a run that fits its prompts.

And that of the quickstart's kind: the rows in the repository are those of its cells.
"""

import dataclasses
import runpy
from pathlib import Path

import pytest
from _study import grid, results
from pretrained_models import save_tiny

from dfpo_jax.training.run import build_run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def study():
    return grid.comparison(runpy.run_path(str(CONFIGS / "study_smollm2.py"))["get_config"]())


def cells_of(study, algorithm):
    """The cells without noise, and those with."""
    (setting, *_), (family,) = study.sweep, study.families(algorithm)
    places = len(study.places[algorithm]) * len(study.seeds)
    return len(study.sweep) * len(study.seeds), places, setting, family


def test_its_size_is_that_of_its_docstring(study):
    counts = [sum(cells_of(study, name)[:2]) for name in study.algorithms]
    text = (CONFIGS / "study_smollm2.py").read_text()
    assert f"There are {sum(counts)} of them" in text
    assert f"then take {sum(counts) * study.cell_seconds / 3600:.0f} hours" in text


def test_every_algorithm_and_kind_of_noise_is_a_run(study):
    for name in study.algorithms:
        setting, family = cells_of(study, name)[2:]
        config = study.cell(family, name, setting, grid.CLEAN, 0.0, 0).config
        assert config.weights.source == "smollm2" and config.warm_start.steps == 0
    for kind, part in study.source.noise.items():
        cell = study.cell(part.family, study.reference, setting, kind, part.levels[-1], 1)
        assert cell.config.rewards != config.rewards


@pytest.mark.parametrize(
    ("file", "cells", "least"),
    [("study_quickstart", grid.comparison, 744), ("ablation_quickstart", grid.ablation, 228)],
)
def test_a_study_goes_on_from_the_rows_in_the_repository(file, cells, least):
    """A change of what its cells run must come with new rows."""
    study = cells(runpy.run_path(str(CONFIGS / "study_quickstart.py"))["get_config"]())
    rows = results.read(CONFIGS.parent / "experiments" / "results" / f"{file}.jsonl")
    assert len(rows) >= least
    for row in (row for row in rows if row["seed"] == 0):
        place = [row[name] for name in grid.COORDINATES]
        assert study.cell(*place).hash == row["cell"], place


def test_noise_by_prompt_is_on_differences(study):
    setting, family = cells_of(study, "dfpo")[2:]
    config = study.cell(family, "dfpo", setting, "gaussian_prompts", 3.0, 0).config
    items = config.task.build("train").batch(0, 200)
    noisy = sum(config.rewards.gaussian.pattern in item.prompt for item in items)
    assert 60 < noisy < 140


@pytest.mark.slow
def test_it_builds_on_other_weights(study, tmp_path):
    save_tiny(tmp_path / "model", max_positions=512)
    setting, family = cells_of(study, "dfpo")[2:]
    config = study.cell(family, "dfpo", setting, "flip", 0.3, 0).config
    config = dataclasses.replace(
        config,
        weights=dataclasses.replace(config.weights, source=str(tmp_path / "model")),
        model=dataclasses.replace(config.model, max_positions=512),
        # One token is one character here.
        train=dataclasses.replace(config.train, prompts=16, prompt_length=200),
        evaluation=dataclasses.replace(config.evaluation, prompts=16),
    )
    run = build_run(config)
    assert run.sampler.chat is not None and list(run.evaluations) == ["in_domain", "out_of_domain"]
