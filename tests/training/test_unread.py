"""Settings of parts that are not chosen: a file may hold them, a command line may not set them."""

import dataclasses
import sys

import command_lines
import pytest

from dfpo_jax.settings import Choice
from dfpo_jax.training.config import Config, default_config, parse_config
from dfpo_jax.training.unread import refuse_unread

SECTIONS = {
    item.name: getattr(Config(), item.name)
    for item in dataclasses.fields(Config)
    if isinstance(getattr(Config(), item.name), Choice)
}
CHOSEN = [(section, name) for section, choice in SECTIONS.items() for name in choice.parts]


def choosing(section, name):
    """Settings of a file that chooses a part, and what that part needs of others."""
    config = default_config()
    config.critic.units, config.advantage.name = "affine", "gae"  # which all critics have
    config[section].name = name
    if (section, name) == ("critic", "none"):
        config.advantage.name = "group"
    if (section, name) == ("plan", "pairs"):
        config.train.samples = 2
    for other, giver in givers(section, name):
        config[other].name = giver
    return config


def givers(section, name):
    """The first parts that give what another part needs and the default ones do not."""
    part = getattr(SECTIONS[section], name)
    if section not in ("advantage", "objective"):
        return
    given = SECTIONS["critic"].build().gives | SECTIONS["plan"].build(2).gives
    for need in part.build().needs - given - {"reference", "behaviour", "scores"}:
        yield next(
            (other, giver)
            for other, inputs in (("critic", ()), ("plan", (2,)))
            for giver, settings in SECTIONS[other].parts.items()
            if (built := settings.build(*inputs)) is not None and need in built.gives
        )


def leaves(settings, path):
    """Dotted names of the settings in a section."""
    if not dataclasses.is_dataclass(settings):
        return [path]
    found = [item.name for item in dataclasses.fields(settings)]
    return [leaf for name in found for leaf in leaves(getattr(settings, name), f"{path}.{name}")]


def flagged(config, path):
    """What a command line sets that gives one setting the value that it has."""
    *sections, name = path.split(".")
    section = config
    for part in sections:
        section = section[part]
    config.begin_flags()
    section[name] = section[name]
    assert config.flagged == {path}
    return config.flagged


def test_every_section_that_chooses_is_here():
    assert set(SECTIONS) == {"plan", "critic", "advantage", "objective"}
    assert len(CHOSEN) >= 10


@pytest.mark.parametrize(("section", "name"), CHOSEN)
def test_only_the_chosen_part_has_settings_for_a_command_line(section, name):
    config = choosing(section, name)
    parsed, choice = parse_config(config), SECTIONS[section]
    for part, settings in choice.parts.items():
        for path in leaves(settings, f"{section}.{part}"):
            if part == name:
                refuse_unread(parsed, flagged(config, path))
                continue
            with pytest.raises(ValueError) as error:
                refuse_unread(parsed, flagged(config, path))
            assert str(error.value) == (
                f"config.{path} is set and config.{section}.name is {name!r}; only {part!r} reads "
                "it"
            )
    for part, settings in choice.added.items():
        for path in leaves(settings, f"{section}.{part}"):
            refuse_unread(parsed, flagged(config, path))


SHARED = (
    "trunk",
    "lambda_",
    "warmup",
    "warmup_patience",
    "warmup_rise",
    "loss_weight",
    "units",
    "source",
    "confidence",
    "pooled",
    "whiten",
)
OF_CRITICS = [
    *(f"critic.{name}" for name in SHARED),
    *leaves(Config().critic_optimizer, "critic_optimizer"),
    "evaluation.critic_prompts",
    "evaluation.critic_samples",
]


def test_the_settings_that_critics_share_are_all_here():
    shared = {item.name for item in dataclasses.fields(Config().critic)}
    shared -= {"name", "custom", *Config().critic.parts}
    assert {f"critic.{name}" for name in shared} <= set(OF_CRITICS)


def test_without_a_critic_none_of_its_settings_is_read():
    config = choosing("critic", "none")
    parsed, with_one = parse_config(config), parse_config(default_config())
    for path in OF_CRITICS:
        with pytest.raises(ValueError) as error:
            refuse_unread(parsed, flagged(config, path))
        assert str(error.value) == (
            f"config.{path} is set and config.critic.name is 'none'; only a critic reads it"
        )
        refuse_unread(with_one, {path})
    for path in ("critic.name", "evaluation.prompts", "policy_optimizer.learning_rate", "seed"):
        refuse_unread(parsed, {path})


def test_a_plan_that_gives_the_rewards_leaves_no_critic_to_measure():
    parsed, sampled = (parse_config(choosing("plan", name)) for name in ("pairs", "uniform"))
    for path in ("evaluation.critic_prompts", "evaluation.critic_samples"):
        with pytest.raises(ValueError, match=f"config.{path} is set and config.plan.name is 'pair"):
            refuse_unread(parsed, {path})
        refuse_unread(sampled, {path})
    refuse_unread(parsed, {"evaluation.prompts"})


@pytest.mark.parametrize(
    ("lines", "flags", "said"),
    [
        (
            ["config.critic.flow.num_samples = 4"],
            ["--config.algorithm=ppo", "--config.critic.flow.num_steps=2"],
            "config.critic.flow.num_steps is set and config.critic.name is 'scalar'; only 'flow' "
            "reads it",
        ),
        (
            ["config.advantage.name = 'rank'"],
            ["--config.advantage.gae.risk.measure=mean"],
            "config.advantage.gae.risk.measure is set and config.advantage.name is 'rank'; only "
            "'gae' reads it",
        ),
        (
            ["config.algorithm = 'grpo'"],
            ["--config.critic_optimizer.learning_rate=0.1"],
            "config.critic_optimizer.learning_rate is set and config.critic.name is 'none'; only a "
            "critic reads it",
        ),
        (
            [],
            ["--config.critic.scalar.value_clip=0.2"],
            "config.critic.scalar.value_clip is set and config.critic.name is 'flow'; only "
            "'scalar' reads it",
        ),
    ],
)
def test_a_command_line_is_refused_in_one_line_and_a_file_is_not(
    tmp_path, monkeypatch, lines, flags, said
):
    file = command_lines.write(tmp_path / "mine.py", *lines)
    with pytest.raises(ValueError) as error:
        parse_config(command_lines.read(monkeypatch, file, *flags))
    assert str(error.value) == said
    # The same in the file is allowed, so that a command line can choose among parts.
    names = [flag.removeprefix("--").partition("=") for flag in flags]
    lines = [*lines, *(f"{name} = {_literal(value)}" for name, _, value in names)]
    parse_config(command_lines.read(monkeypatch, command_lines.write(tmp_path / "m.py", *lines)))


def _literal(value):
    return value if value.replace(".", "").isdigit() else repr(value)


OWN = """
import dataclasses
from dfpo_jax.advantages import Gae

@dataclasses.dataclass(frozen=True)
class Mine:
    scale: float = 1.0

    def build(self):
        return Gae().build()
"""


def test_with_a_part_of_the_users_own_no_other_is_read(tmp_path, monkeypatch):
    (tmp_path / "own_advantages.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    file = command_lines.write(tmp_path / "mine.py", "config.advantage.gae.lambda_ = 0.5")
    own = "--config.advantage.name=own_advantages:Mine"
    custom = "--config.advantage.custom={'scale': 2.0}"
    parsed = parse_config(command_lines.read(monkeypatch, file, own, custom))
    assert parsed.advantage.chosen.scale == 2.0
    flag = "--config.advantage.gae.lambda_=0.5"
    with pytest.raises(ValueError, match="name is 'own_advantages:Mine'; only 'gae' reads it$"):
        parse_config(command_lines.read(monkeypatch, file, own, flag))
    sys.modules.pop("own_advantages", None)
