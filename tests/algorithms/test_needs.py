"""Sentences about parts that cannot work together."""

import pytest
from tiny import Markov

from dfpo_jax.advantages import Advantages, Gae, Risk
from dfpo_jax.algorithms import AlgorithmConfig, Returns, compose
from dfpo_jax.algorithms.needs import check_parts
from dfpo_jax.critics import Critics, Flow
from dfpo_jax.objectives import Expert, Flowrl, Kl, Objectives
from dfpo_jax.plans import Plans

NONE, SCALAR, GROUP = Critics("none"), Critics("scalar"), Advantages("group")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            AlgorithmConfig(SCALAR, Advantages("rank")),
            "advantage 'rank' needs law; critic 'scalar' gives value; it is given by LAWS",
        ),
        (
            AlgorithmConfig(SCALAR, Advantages("sigma")),
            "advantage 'sigma' needs law; critic 'scalar' gives value; it is given by LAWS",
        ),
        (
            AlgorithmConfig(SCALAR, Advantages(gae=Gae(risk=Risk("cvar")))),
            "advantage 'gae' needs law; critic 'scalar' gives value; it is given by LAWS",
        ),
        (
            AlgorithmConfig(NONE),
            "advantage 'gae' needs value; critic 'none' gives nothing; it is given by VALUES",
        ),
        (
            AlgorithmConfig(NONE, GROUP, returns=Returns(overlong="bootstrap")),
            "returns.overlong 'bootstrap' needs value; critic 'none' gives nothing; it is given by "
            "VALUES",
        ),
        (
            AlgorithmConfig(NONE, GROUP, returns=Returns(discount=0.9)),
            "returns.discount is 0.9; advantage 'group' reads rewards of whole responses alone, so "
            "it must be 1.0",
        ),
        (
            AlgorithmConfig(NONE, GROUP, Objectives(kl=Kl(0.1, where="reward"))),
            "objective 'kl' adds rewards of single tokens; advantage 'group' reads rewards of "
            "whole responses alone, so it must stand in the loss",
        ),
    ],
)
def test_one_sentence_says_what_is_needed_and_what_gives_it(config, sentence):
    with pytest.raises(ValueError) as error:
        compose(Markov(), config, 1.0)
    for need, word in (("value", "VALUES"), ("law", "LAWS")):  # of whatever is registered
        critics = {name: part.build() for name, part in Critics().parts.items()}
        givers = [f"critic {name!r}" for name, x in critics.items() if x and need in x.gives]
        sentence = sentence.replace(word, ", ".join(givers))
    found, _, others = str(error.value).partition("; advantages that need no more than that: ")
    assert found == sentence
    if sentence.startswith("advantage"):
        fit = {name for name in Advantages().parts if repr(name) in others.split(", ")}
        assert fit >= {"group", "batch"} and not fit & {"sigma", "rank"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"returns": Returns(discount=0.9)},
            "returns.discount is 0.9; {}, so it must be 1.0, or critic.units 'affine'",
        ),
        (
            {"objective": Objectives(kl=Kl(0.1, where="reward"))},
            "objective 'kl' adds rewards of single tokens; {}, so it must stand in the loss or "
            "critic.units be 'affine'",
        ),
    ],
)
def test_flow_matching_in_asinh_units_needs_equal_returns(options, sentence):
    flow = Critics(units="asinh")
    with pytest.raises(ValueError) as error:
        check_parts(AlgorithmConfig(flow, **options))
    reader = (
        "critic 'flow' with units 'asinh' relates successive states only where their returns are "
        "equal (its dcfm_weight is above 0)"
    )
    assert str(error.value) == sentence.format(reader)
    check_parts(AlgorithmConfig(flow))
    for critic in (Critics(), Critics(units="asinh", flow=Flow(dcfm_weight=0.0))):
        check_parts(AlgorithmConfig(critic, **options))
    check_parts(AlgorithmConfig(Critics("quantile", units="asinh"), **options))


def test_groups_need_several_responses_to_a_prompt():
    config = AlgorithmConfig(NONE, GROUP)
    check_parts(config, Plans(), samples=2)
    with pytest.raises(ValueError) as error:
        check_parts(config, Plans(), samples=1)
    # Not "pairs", whose responses are no policy's.
    plans = (name for name in Plans().parts if name != "pairs")
    givers = [f"plan {name!r} with train.samples of 2 or more" for name in plans]
    assert str(error.value) == (
        "advantage 'group' needs groups; critic 'none' gives nothing, plan 'uniform' with "
        f"train.samples=1 gives nothing; it is given by {', '.join(givers)}; advantages that need "
        "no more than that: 'batch'"
    )


def test_an_objective_too_may_need_groups():
    """With an advantage that needs none; what every plan gives is never missing."""
    objective = Objectives("flowrl", flowrl=Flowrl(importance="tis_clip"))
    config = AlgorithmConfig(SCALAR, objective=objective)
    check_parts(config)
    check_parts(config, Plans(), samples=2)
    with pytest.raises(ValueError, match="objective 'flowrl' needs groups; critic 'scalar' gives"):
        check_parts(config, Plans(), samples=1)


def test_an_expert_comes_from_the_plan():
    config = AlgorithmConfig(SCALAR, objective=Objectives(expert=Expert(0.1)))
    check_parts(config)
    with pytest.raises(ValueError, match="objective 'expert' needs expert; critic 'scalar' gives"):
        check_parts(config, Plans(), samples=2)


def test_groups_beside_a_critic_may_have_discounts_but_no_rewards_of_tokens():
    """The critic reads both, but the policy would not see a KL in the reward."""
    returns = Returns(0.9, overlong="bootstrap")
    check_parts(AlgorithmConfig(SCALAR, GROUP, returns=returns), Plans(), 2)
    kl = Objectives(kl=Kl(0.1, where="reward"))
    with pytest.raises(ValueError, match="it must stand in the loss"):
        check_parts(AlgorithmConfig(SCALAR, GROUP, kl), Plans(), 2)
