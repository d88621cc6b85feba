"""Parts of the user's own: loaded by a configuration, checked once, composed."""

import dataclasses
import subprocess
import sys
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import tiny
from wrong_parts import refused

from dfpo_jax import contracts
from dfpo_jax.algorithms import compose
from dfpo_jax.settings import parse_section
from dfpo_jax.training.config import default_config, parse_config

SOURCE = '''
import dataclasses

import jax
import jax.numpy as jnp

from dfpo_jax import ops
from dfpo_jax.advantages import Advantage
from dfpo_jax.critics import Critic
from dfpo_jax.objectives import Objective
from dfpo_jax.types import Loss

CHECKS = []


@dataclasses.dataclass(frozen=True)
class Mean:
    """A critic that knows the mean, by a linear head of its own."""
    scale: float = 1.0
    steps: int = 1
    kind: str = "mse"
    layers: tuple[int, ...] = ()
    limit: int | None = None

    def __post_init__(self):
        if self.scale <= 0:
            raise ValueError(f"scale is {self.scale}; it must be above 0")

    def build(self):
        def returns(key, values, steps, lambda_):
            CHECKS.append(steps)
            return ops.lambda_average(
                steps.rewards,
                values[:, :-1, None],
                steps.mask,
                discount=steps.discount,
                lambda_=lambda_,
                final_values=ops.final_values(values, steps.mask, steps.bootstrap)[:, None],
            )

        def losses(params, states, rows, old_params, keys):
            error = jnp.square(read(params, states)[:, :-1] - jax.lax.stop_gradient(rows)[..., 0])
            return {"mse": Loss(error, weight=self.scale)}

        def read(params, states):
            return states @ params["w"]

        return Critic(
            init=lambda key, width: {"w": jnp.zeros(width)},
            read=read,
            law=lambda values: values[..., None],
            returns=returns,
            targets=returns,
            losses=losses,
            gives=frozenset({"value"}),
        )


@dataclasses.dataclass(frozen=True)
class Batch:
    """The reward less the batch's mean."""
    needs: str = ""

    def build(self):
        def estimate(view, steps, rollout):
            return (rollout.rewards - jnp.mean(rollout.rewards))[:, None] * steps.mask
        return Advantage(estimate, frozenset(self.needs.split()), whole_response=True)


@dataclasses.dataclass(frozen=True)
class Reinforce:
    """The policy gradient, and a baseline network of its own."""
    network: bool = False
    name: str = "loss"

    def build(self):
        def terms(live, batch, context, own):
            gain = jax.lax.stop_gradient(batch.advantages) * jnp.ones_like(live.log_probs)
            losses = {self.name: Loss(-live.log_probs * gain)}
            if self.network:
                hidden = live.hidden[:, -batch.mask.shape[1] :]
                losses["value"] = Loss(jnp.square(hidden @ own["w"]))
            return losses
        init = (lambda key, width: {"w": jnp.ones(width)}) if self.network else None
        return Objective(terms, init=init)


@dataclasses.dataclass
class Broken:
    def build(self):
        raise KeyError("weights")


@dataclasses.dataclass
class Nothing:
    def build(self):
        return None


@dataclasses.dataclass
class Transposed:
    def build(self):
        return Advantage(lambda view, steps, rollout: steps.rewards.T)


class NotOfSettings:
    def build(self):
        return None


@dataclasses.dataclass
class NoBuild:
    size: int = 1
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text(SOURCE)
    (tmp_path / "does_not_load.py").write_text("1 +\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("own_parts", None)


ALL = {
    "algorithm": "ppo",  # whose advantage and units are those of any critic
    "critic": {"name": "own_parts:Mean", "custom": {"scale": 2, "layers": [3, 4]}},
    "advantage": {"name": "own_parts:Batch"},
    "objective": {"name": "own_parts:Reinforce", "custom": {"network": True}},
}


def test_parts_of_the_users_own_are_composed(module):
    config = parse_config(ALL).algorithm_config()
    algorithm = compose(tiny.Markov(), config, 0.8)
    assert algorithm.networks == ("policy", "critic", "objective")

    def run(key, policy, rollout):
        params = nn.unbox(algorithm.init(key, policy))
        state = tiny.TrainState(
            jnp.int32(0),
            jnp.int32(0),
            params,
            None,
            None,
            {"value_shift": 0.0, "value_scale": 1.0},
            key,
        )
        return algorithm.loss(params, *algorithm.prepare(state, rollout, key), key)

    rollout = tiny.ragged_rollout()
    terms = jax.eval_shape(run, jax.random.key(0), tiny.markov_params(), rollout)
    expected = {"policy/loss", "policy/value", "policy/kl_old", "policy/entropy", "critic/mse"}
    assert set(terms) == expected | {"rollout/explained_variance"}


def test_settings_of_the_users_own_are_converted(module):
    part = parse_config(ALL).critic.chosen
    assert (part.scale, part.layers, part.kind) == (2.0, (3, 4), "mse")
    assert type(part.scale) is float
    config = default_config()  # the same from a configuration file
    config.algorithm = "ppo"
    config.critic.name = "own_parts:Mean"
    config.critic.custom = {"scale": 3, "steps": 2, "limit": 5}
    part = parse_config(config).critic.chosen
    assert (part.scale, part.steps, part.limit) == (3.0, 2, 5)


def test_a_part_is_checked_once_for_the_same_settings(module):
    parse_config(ALL)
    checks = sys.modules["own_parts"].CHECKS
    once = len(checks)
    assert once > 0
    compose(tiny.Markov(), parse_config(ALL).algorithm_config(), 0.8)
    assert len(checks) == once
    parse_config(ALL | {"critic": {"name": "own_parts:Mean", "custom": {"scale": 5.0}}})
    assert len(checks) == 2 * once


def test_the_parts_above_keep_the_contracts(module):
    parse_config(ALL)
    own = sys.modules["own_parts"]
    assert contracts.critic(own.Mean()) is None
    assert contracts.advantage(own.Batch()) is None
    assert contracts.objective(own.Reinforce(network=True)) is None


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (float | None, 1, 1.0),
        (list[int], [1], [1]),
        (list[int], 3, None),
        (dict[str, float], {"a": 1.0}, {"a": 1.0}),
        (typing.Literal["a", "b"], "b", "b"),
        (typing.Literal["a", "b"], "c", None),
        (typing.Any, "anything", "anything"),
        (tuple[float, ...], [1, 2.0], (1.0, 2.0)),
        (tuple[float, ...], ["x"], None),
    ],
)
def test_every_type_of_a_field_can_be_set(hint, value, expected):
    part = dataclasses.make_dataclass("Part", [("x", hint, None)])
    if expected is None:
        assert refused("custom.x is", parse_section, part(), {"x": value}, "custom")
    else:
        assert parse_section(part(), {"x": value}, "custom").x == expected


OWN = "or module:Class of your own"


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        (
            "critic",
            {"name": "flwo"},
            f"name is 'flwo'; it must be one of {{}} (the nearest is flow, scalar_flow), {OWN}",
        ),
        (
            "critic",
            {"name": "quantiles"},
            "name is 'quantiles'; it must be one of {} (the nearest is quantile",
        ),
        (
            "advantage",
            {"name": "gea"},
            f"name is 'gea'; it must be one of {{}} (the nearest is gae, sigma), {OWN}",
        ),
        (
            "objective",
            {"name": "clipped"},
            f"name is 'clipped'; it must be one of {{}} (the nearest is clip, cispo), {OWN}",
        ),
        ("objective", {"name": "xyz"}, f"name is 'xyz'; it must be one of {{}}, {OWN}"),
        (
            "critic",
            {"custom": {"size": 1}},
            "custom is {'size': 1}; name is 'flow', not one of your",
        ),
        (
            "critic",
            {"name": "a b:C"},
            "name is 'a b:C'; a critic of your own is named module:Class",
        ),
        (
            "critic",
            {"name": "own_parts:Men"},
            "name is 'own_parts:Men', which does not import: Attr",
        ),
        (
            "advantage",
            {"name": "no_such:A"},
            "name is 'no_such:A', which does not import: ModuleNot",
        ),
        (
            "objective",
            {"name": "does_not_load:O"},
            "name is 'does_not_load:O', which does not impor",
        ),
        (
            "critic",
            {"name": "own_parts:NotOfSettings"},
            "name is 'own_parts:NotOfSettings'; a criti",
        ),
        (
            "objective",
            {"name": "own_parts:NoBuild"},
            "name is 'own_parts:NoBuild'; an objective must",
        ),
        (
            "critic",
            {"name": "own_parts:Mean", "custom": {"scale": "2"}},
            "custom.scale is '2' of type str; it must be of type float",
        ),
        (
            "critic",
            {"name": "own_parts:Mean", "custom": {"steps": 1.5}},
            "custom.steps is 1.5 of type float; it must be of type int",
        ),
        (
            "critic",
            {"name": "own_parts:Mean", "custom": {"limit": "5"}},
            "custom.limit is '5' of type str; it must be of type int | None",
        ),
        (
            "critic",
            {"name": "own_parts:Mean", "custom": {"scale": -1.0}},
            "custom.scale is -1.0; it must be above 0",
        ),
    ],
)
def test_what_cannot_be_loaded_is_one_line_that_names_the_section(module, section, values, said):
    default = parse_config({})
    said = said.replace("{}", ", ".join(getattr(default, section).parts))
    assert refused(f"config.{section}.{said}", parse_config, {section: values})


def test_an_unknown_setting_of_a_part_names_those_that_it_has(module):
    source = {"critic": {"name": "own_parts:Mean", "custom": {"scael": 1.0}}}
    said = refused("config.critic.custom.scael", parse_config, source)
    assert said.endswith("scale, steps, kind, layers, limit")


INTERFACES = {
    kind: f"it must return a dfpo_jax.{kind}s.interface.{kind.capitalize()}"
    for kind in ("critic", "advantage", "objective")
}


@pytest.mark.parametrize("section", INTERFACES)
@pytest.mark.parametrize("name", ["Broken", "Nothing", "Transposed"])
def test_what_is_wrong_with_a_part_is_one_line(module, section, name):
    said = {
        "Broken": "build raised KeyError: 'weights'",
        "Nothing": f"build returned NoneType; {INTERFACES[section]}",
        "Transposed": f"build returned Advantage; {INTERFACES[section]}",
    }[name]
    if (section, name) == ("advantage", "Transposed"):
        said = "estimate returned float32 (3, 2); it must return floats [B, R] (here (2, 3))"
    source = {"algorithm": "ppo", section: {"name": f"own_parts:{name}"}}
    assert refused(f"config: own_parts:{name}: {said}", parse_config, source)


def test_an_objective_that_takes_a_name_is_refused(module):
    own = {"name": "own_parts:Reinforce", "custom": {"name": "entropy"}}
    said = "own_parts:Reinforce: terms returned a loss 'entropy', a name that is taken; taken are"
    assert refused(f"config: {said}", parse_config, {"objective": own})


def test_what_no_part_gives_is_said(module):
    source = {"advantage": {"name": "own_parts:Batch", "custom": {"needs": "weather"}}}
    said = refused(
        "config.advantage 'own_parts:Batch' needs weather; critic 'flow' ", parse_config, source
    )
    assert "; it is given by no part that is registered; advantages that need no more than" in said


def test_a_part_that_was_loaded_anew_is_checked_anew(module):
    name = {"advantage": {"name": "own_parts:Batch"}}
    parse_config(name)
    (module / "own_parts.py").write_text(
        SOURCE.replace("[:, None] * steps.mask\n        return Adv", "\n        return Adv")
    )
    sys.modules.pop("own_parts")
    assert refused("config: own_parts:Batch: estimate returned float32 ", parse_config, name)


PROGRAM = """
from dfpo_jax.advantages import Advantages
from dfpo_jax.critics import Critics
from dfpo_jax.objectives import Objectives
from jax._src.xla_bridge import backends_are_initialized

for section in (Critics(), Advantages(), Objectives()):
    for part in [*section.parts.values(), *section.added.values()]:
        part.build()
Critics(name="own_parts:Mean").build()
Advantages(name="own_parts:Batch").build()
Objectives(name="own_parts:Reinforce").build()
assert not backends_are_initialized()
"""


def test_no_device_is_touched_before_processes_connect(module):
    """A configuration is checked before `jax.distributed.initialize`, which must come first."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=module, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
