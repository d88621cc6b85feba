"""Parts compose and trace, or one sentence says why not: every pair of two parts is tried."""

import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import tiny

from dfpo_jax.advantages import Advantages
from dfpo_jax.algorithms import AlgorithmConfig, compose
from dfpo_jax.algorithms.needs import check_parts
from dfpo_jax.critics import Critics
from dfpo_jax.objectives import Objectives
from dfpo_jax.plans import Plans
from dfpo_jax.types import Expert, TrainState

KINDS = (Critics().parts, Advantages().parts, Objectives().parts, Plans().parts, (1, 2))
ALWAYS = frozenset({"reference", "behaviour", "scores"})


def every_pair(kinds):
    """Some of the product: any two values of two kinds occur together."""

    def pairs(case):
        return set(itertools.combinations(enumerate(case), 2))

    product = list(itertools.product(*kinds))
    missing, cases = set().union(*map(pairs, product)), []
    while missing:
        cases.append(max(product, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(cases[-1])
    return cases


CASES = every_pair(KINDS)


def config_of(critic, advantage, objective):
    return AlgorithmConfig(
        Critics(name=critic), Advantages(name=advantage), Objectives(name=objective)
    )


def missing(critic, advantage, objective, plan, samples):
    """What a part needs and no other part gives."""
    config, plan = config_of(critic, advantage, objective), Plans(name=plan)
    built = config.critic.build()
    given = plan.build(samples).gives | ALWAYS | (built.gives if built else frozenset())
    needs = config.advantage.build().needs
    return needs.union(*(part.needs for part in config.objective.build().values())) - given


def refused_by_plan(plan, samples):
    """What a plan says against a number of responses per prompt, or ""."""
    try:
        Plans(name=plan).build(samples)
    except ValueError as error:
        return str(error)
    return ""


def traced(config, samples):
    """Shapes of the advantages and of the losses' totals."""
    algorithm = compose(tiny.Markov(), config, 0.8)

    def run(key, policy, rollout):
        params = nn.unbox(algorithm.init(key, policy))
        state = TrainState(
            step=jnp.int32(0),
            skipped=jnp.int32(0),
            params=params,
            opt_state=None,
            reference=policy if algorithm.keeps_reference else None,
            controls={name: jnp.float32(value) for name, value in algorithm.controls.items()},
            key=key,
        )
        batch, context = algorithm.prepare(state, rollout, key)
        return batch.advantages, algorithm.loss(params, batch, context, key)

    rollout = tiny.ragged_rollout().replace(samples=samples)
    rollout = rollout.replace(baseline=rollout.rewards, expert=Expert(rollout.tokens, rollout.mask))
    if algorithm.top:
        top = jnp.zeros((*rollout.tokens.shape, algorithm.top))
        rollout = rollout.replace(top_tokens=top.astype(jnp.int32), top_log_probs=top)
    return jax.eval_shape(run, jax.random.key(0), tiny.markov_params(), rollout)


def givers(sentence):
    """The parts that the sentence names as those that would give what is missing."""
    return re.findall(r"(critic|plan) '(\w+)'", sentence.partition("; it is given by ")[2])


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_parts_compose_and_trace_or_are_refused_by_one_sentence(case):
    critic, advantage, objective, plan, samples = case
    config = config_of(critic, advantage, objective)
    if sentence := refused_by_plan(plan, samples):
        assert f"samples {samples}; " in sentence and "\n" not in sentence
        with pytest.raises(ValueError, match=re.escape(sentence)):
            check_parts(config, Plans(name=plan), samples)
        return
    lacks = missing(*case)
    if not lacks:
        check_parts(config, Plans(name=plan), samples)
        advantages, terms = traced(config, samples)
        assert advantages.shape == (8, 5)
        assert any(name.startswith("critic/") for name in terms) == (critic != "none")
        assert "policy/loss" in terms
        assert all(term.total.shape == () == term.count.shape for term in terms.values())
        return
    with pytest.raises(ValueError) as refused:
        check_parts(config, Plans(name=plan), samples)
    said = str(refused.value)
    _, need = re.match(r"(advantage|objective) '\w+' needs (\w+); ", said).groups()
    assert need in lacks and "\n" not in said
    named = givers(said)
    assert named
    for kind, name in named:
        changed = {"critic": (name, advantage, objective, plan, samples)}
        changed["plan"] = (critic, advantage, objective, name, 2)
        assert need not in missing(*changed[kind])


def test_both_outcomes_occur():
    cases = [case for case in CASES if not refused_by_plan(*case[3:])]
    assert len(cases) < len(CASES)
    refused = [case for case in cases if missing(*case)]
    assert refused and len(refused) < len(cases)
    assert {"value", "law", "groups"} <= {need for case in refused for need in missing(*case)}


def test_the_sentence_names_what_is_missing_and_who_gives_it():
    with pytest.raises(ValueError) as refused:
        check_parts(config_of("scalar", "rank", "clip"))
    said = "advantage 'rank' needs law; critic 'scalar' gives value; it is given by critic "
    assert str(refused.value).startswith(said)
    assert {("critic", "quantile"), ("critic", "flow")} <= set(givers(str(refused.value)))
    with pytest.raises(ValueError) as refused:
        check_parts(config_of("none", "group", "clip"), Plans(), 1)
    assert str(refused.value).startswith(
        "advantage 'group' needs groups; critic 'none' gives nothing, plan 'uniform' with "
        "train.samples=1 gives nothing; it is given by plan 'uniform' with train.samples of 2 or "
    )
