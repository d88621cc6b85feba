"""The grid of a study, hashes, and which rows count."""

import dataclasses
import json
import pathlib
import runpy

import pytest
import tiny_study
from _study import grid, plan, results

from dfpo_jax.rewards import Rewards
from dfpo_jax.training import config as config_module

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study():
    return grid.comparison(tiny_study.get_config())


def test_the_cells(study):
    assert list(study.sweep) == ["0.001", "0.002"]
    assert study.families("ppo") == ["binary", "graded"] and study.families("rloo") == ["binary"]
    assert len(study.sweep_cells("ppo", "binary")) == 2 * 2
    places = [(c.noise, c.level, c.seed) for c in study.noisy_cells("ppo", "binary", "0.001")]
    assert places == [("flip", x, seed) for x in (0.2, 0.4) for seed in (0, 1)]
    assert [c.level for c in study.noisy_cells("rloo", "binary", "0.001")] == [0.4, 0.4]
    cell = study.cell("binary", "grpo", "0.002", "flip", 0.4, 1)
    flip = cell.config.rewards.flip
    assert (flip.false_positive, flip.false_negative, flip.seed) == (0.4, 0.6, 1)
    assert cell.config.seed == cell.config.task.seed == 1
    assert cell.config.algorithm == "grpo" and cell.config.critic.name == "none"
    assert cell.config.policy_optimizer.learning_rate == 2e-3
    assert not cell.config.task.partial_credit
    assert cell.changes["rewards.flip.false_positive"] == 0.4


def test_the_ablation_starts_from_its_base_with_its_own_sweep():
    study = grid.ablation(tiny_study.get_config())
    assert study.reference == "dfpo" and list(study.sweep) == ["0.0005"]
    steps = [study.sweep_cells(x, "binary")[0].config.critic.flow.num_steps for x in study.places]
    assert dict(zip(study.places, steps, strict=True)) == {"dfpo": 2, "1 step": 1}


def test_an_ablation_may_do_without_cells_without_noise():
    source = tiny_study.get_config()
    source.ablation.clean = False
    study = grid.ablation(source)
    assert study.sweep_cells("dfpo", "binary") == []
    state = plan.Plan(study, [], {})
    ready = [(cell.algorithm, cell.noise, cell.seed) for cell in state.ready()]
    wanted = [(name, "flip", seed) for seed in (0, 1) for name in ("1 step", "dfpo")]
    assert ready == wanted and state.waiting() == []
    source.ablation.sweep.policy_optimizer.learning_rate = (5e-4, 1e-3)
    with pytest.raises(ValueError, match="config.ablation.clean is False and its sweep has 2 set"):
        grid.ablation(source)


def test_the_default_study_has_the_size_it_states():
    source = runpy.run_path(str(ROOT / "configs" / "study_quickstart.py"))["get_config"]()
    study = grid.comparison(source)
    everywhere = [name for name, places in study.places.items() if len(places) >= 18]
    assert len(everywhere) >= 8 and len(source.noise) >= 6 and len(study.seeds) >= 3
    assert sum(len(kind.levels) >= 3 for kind in source.noise.values()) >= 6
    for kind, levels in source.noise.items():
        setting = next(iter(study.sweep))
        assert study.cell(levels.family, "ppo", setting, kind, levels.levels[-1], 0).config
    at = [set(study.places[name]) for name in study.algorithms]
    assert len(at) >= 12 and set.intersection(*at)
    for made in (study, grid.ablation(source)):  # every row is a run
        for name in made.algorithms:
            setting = next(iter(made.sweep))
            assert made.noisy_cells(name, made.families(name)[0], setting)[0].config


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("noise.flip.levels", (0.4, 0.2), "config.noise.flip.levels is (0.4, 0.2)"),
        ("noise.flip.levels", (0.0, 0.2), "must increase from above 0"),
        ("noise.flip.family", "other", "must be one of binary, graded"),
        ("reference", "nobody", "config.reference is 'nobody'; it must be one of grpo, ppo, rloo"),
        ("seeds", (1, 1), "config.seeds is (1, 1)"),
        ("run.warm_start.steps", 0, "steps is 0 and config.run.weights.source ''; cells would"),
        ("cell_seconds", 0, "config.cell_seconds is 0; it must be a number above 0"),
        ("more.cells", {"flop": (0.1,)}, "config.more.cells.flop is no kind of noise"),
        ("more.algorithms", {"ppo": {}}, "config.more.algorithms repeats ppo"),
    ],
)
def test_what_is_wrong_is_named(path, value, words):
    source = tiny_study.get_config()
    *sections, name = path.split(".")
    section = source
    for part in sections:
        section = section[part]
    with section.unlocked(), section.ignore_type():
        section[name] = value
    with pytest.raises(ValueError) as raised:
        grid.comparison(source)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"critic": {"flows": {"num_steps": 1}}}, "config.critic.flows is not a setting"),
        ({"critic": {"flow": {"steps": 1}}}, "nearest is config.critic.flow.num_steps"),
        ({"model": {"d_model": 8}}, "config.model.d_model is the same in all cells"),
        ({"rewards": {"clip": {"bound": -1.0}}}, "config.rewards.clip.bound is -1.0"),
        ({"algorithm": "grpp"}, "config.algorithm is 'grpp'"),
    ],
)
def test_wrong_overrides_name_the_cell_and_the_setting(overrides, words):
    source = tiny_study.get_config()
    source.algorithms = {"ppo": {"algorithm": "ppo"}, "mine": overrides}
    with pytest.raises(ValueError) as raised:
        grid.comparison(source).sweep_cells("mine", "binary")
    assert str(raised.value).startswith("cell binary mine 0.001 clean 0 0: ")
    assert words in str(raised.value)


def test_hashes(study):
    cells = [
        cell
        for name in study.algorithms
        for cell in (
            *study.sweep_cells(name, "binary"),
            *study.noisy_cells(name, "binary", "0.001"),
        )
    ]
    assert len({cell.hash for cell in cells}) == len(cells)
    cells = study.sweep_cells("ppo", "binary")
    config = cells[0].config
    again = grid.comparison(tiny_study.get_config()).sweep_cells("ppo", "binary")[0]
    assert again.hash == cells[0].hash == grid.config_hash(config)

    def changed(section, **values):
        return dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **values)}
        )

    unread = dataclasses.replace(config.critic.quantile, num_quantiles=5)
    assert grid.config_hash(changed("critic", quantile=unread)) == cells[0].hash
    assert grid.config_hash(changed("critic", lambda_=0.5)) != cells[0].hash
    assert grid.config_hash(changed("train", iterations=2)) != cells[0].hash
    assert grid.config_hash(changed("sampling", wide_rows=0)) == cells[0].hash
    assert grid.config_hash(changed("rewards", clip=Rewards().clip)) == cells[0].hash


def test_a_setting_that_is_new_leaves_hashes_as_they_are(study, monkeypatch):
    """If its default is what there was before; another value of it is another run."""

    @dataclasses.dataclass(frozen=True)
    class TrainConfig(config_module.TrainConfig):
        new: int = 1

    @dataclasses.dataclass(frozen=True)
    class Config(config_module.Config):
        train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    config = study.sweep_cells("ppo", "binary")[0].config
    before = grid.config_hash(config)
    sections = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    train = {f.name: getattr(config.train, f.name) for f in dataclasses.fields(config.train)}
    monkeypatch.setattr(grid, "Config", Config)

    def hash_with(**new):
        return grid.config_hash(Config(**sections | {"train": TrainConfig(**train, **new)}))

    assert hash_with() == before != hash_with(new=2)


def test_a_file_counts_by_what_it_holds(study, tmp_path):
    config = study.sweep_cells("ppo", "binary")[0].config

    def hash(name, text):
        path = tmp_path / name
        path.write_text(text)
        task = dataclasses.replace(config.task, parameters={"data_file": str(path)})
        return grid.config_hash(dataclasses.replace(config, task=task))

    assert hash("here", "12\n") == hash("there", "12\n") != hash("else", "13\n")


def test_only():
    cells = grid.comparison(tiny_study.get_config()).noisy_cells("ppo", "binary", "0.001")
    only = grid.parse_only("noise=flip,level=.40,seed=0,seed=1")
    assert [(c.level, c.seed) for c in grid.select(cells, only)] == [(0.4, 0), (0.4, 1)]
    for wrong in ("algo=ppo", "seed", "seed=", "level=high"):
        with pytest.raises(ValueError, match="--only"):
            grid.parse_only(wrong)


def test_rows_survive_a_torn_line(tmp_path, study):
    path = tmp_path / "deep" / "results.jsonl"
    first, second = (tiny_study.made_row(c, 0.7) for c in study.sweep_cells("ppo", "binary")[:2])
    results.append(path, first)
    with open(path, "ab") as file:
        file.write(b'{"cell": "torn')
    assert results.read(path) == [first]
    results.append(path, second)
    assert results.read(path) == [first, second]
    path.write_text("{}\n" + json.dumps(first) + "\n")
    with pytest.raises(ValueError, match="line 1: no row of a study, without algorithm"):
        results.read(path)


def test_a_plan_skips_rows_and_ignores_those_of_other_settings(study):
    fresh = plan.Plan(study, [], {})
    assert len(fresh.ready()) == 5 * 4 and len(fresh.waiting()) == 2 * (4 + 2) + 2
    assert fresh.seconds(fresh.ready()) == 20 * grid.GUESS
    # The second setting of ppo was right more often in training, whatever came of it.
    cells = study.sweep_cells("ppo", "binary")
    scores = {"0.001": 0.5, "0.002": 0.6}
    rows = [tiny_study.made_row(c, 0.9 - scores[c.setting], scores[c.setting]) for c in cells]
    state = plan.Plan(study, rows, {})
    ready = [c for c in state.ready() if c.noise != "clean"]
    assert [(c.setting, c.seed) for c in ready] == [("0.002", s) for s in (0, 0, 1, 1)]
    assert "4 cells are done, 30 are left" in state.words()
    old = [{**rows[0], "cell": "0" * 12}, {**rows[1], "algorithm": "gone"}]
    state = plan.Plan(study, rows + old, {})
    assert "1 rows were run with other settings (ppo): ignored" in state.words()
    assert "1 rows are of no cell of this study" in state.words()
    source = tiny_study.get_config()
    source.cell_seconds = 400
    assert plan.Plan(grid.comparison(source), [], {}).seconds(cells[:2]) == 800
    state = plan.Plan(study, rows[1:] + old, {})
    assert cells[0].hash in [cell.hash for cell in state.ready()]


def test_a_part_of_a_study_brings_the_cells_that_choose_its_settings(study):
    part = plan.Plan(study, [], grid.parse_only("algorithm=grpo,noise=flip,level=.2,seed=1"))
    ready = part.ready()
    assert {c.algorithm for c in ready} == {"grpo"} and {c.noise for c in ready} == {"clean"}
    assert {c.seed for c in ready} == {0, 1} and len(ready) == 4
    for number, cell in enumerate(ready):
        part.add(tiny_study.made_row(cell, 0.7, sampled=0.1 * number))
    (cell,) = part.ready()
    assert (cell.noise, cell.level, cell.seed, cell.setting) == ("flip", 0.2, 1, "0.002")
    assert len(part.finished()) == 0


def test_differences_of_a_repeated_cell_are_named_but_for_times(study):
    row = tiny_study.made_row(study.sweep_cells("ppo", "binary")[0], 0.7)
    again = {**row, "seconds": 1.0, "cpu_seconds": 2.0, "commit": "other"}
    assert results.differences(row, again) == []
    changed = {**again, "sampled": [0.5, 0.51]}
    assert results.differences(row, changed) == ["sampled: [0.5, 0.7] -> [0.5, 0.51]"]
