"""Plans: what every registered one keeps to, joined rounds, and what is refused of the user's."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
from plan_draws import draw, given, prompts

from dfpo_jax.plans import Draw, Plans, check_plan, join, regroup
from dfpo_jax.plans.check import guarded
from dfpo_jax.plans.interface import Drawn, Plan

PLANS = [part.name for part in dataclasses.fields(Plans) if part.name not in ("name", "custom")]
SAMPLES = {"refill": (2, 3), "elimination": (2, 3), "pairs": (2,)}  # of plans that take only some
CASES = [(name, samples) for name in PLANS for samples in SAMPLES.get(name, (1, 2, 3))]


@pytest.mark.parametrize(("name", "samples"), CASES)
def test_a_plan_gives_the_rows_it_owes_and_repeats_them(name, samples):
    plan = Plans(name=name).build(samples)
    source = Draw(draw, given)
    drawn, metrics = plan.collect(source, prompts, 5, samples)
    rollout, texts, items = drawn
    assert len(texts) == 5 * samples and {len(x) for x in jax.tree.leaves(rollout)} == {5 * samples}
    assert all(isinstance(name, str) and np.isfinite(value) for name, value in metrics.items())
    for row, text in enumerate(texts):  # every row answers its item
        assert text.split(".")[0] == items[rollout.groups[row]].answer
        assert rollout.tokens[row, 0] == items[rollout.groups[row]].index
    assert ("groups" in plan.gives) == (samples >= 2)
    if "groups" in plan.gives:
        groups = rollout.groups.reshape(-1, samples)
        assert rollout.samples == samples and (groups == groups[:, :1]).all()
    assert ("pool" in plan.gives) == (rollout.baseline is not None)
    assert ("expert" in plan.gives) == (rollout.expert is not None)
    again, same = plan.collect(source, prompts, 5, samples)
    assert again.texts == texts and same == metrics
    jax.tree.map(np.testing.assert_array_equal, again.rollout, rollout)
    if name != "pairs":  # the prompts of the check have no columns
        check_plan(plan, f"plans:{name}", samples)


@pytest.mark.parametrize(
    ("name", "samples", "said"),
    [
        ("refill", 1, "plan.name is 'refill' and train.samples 1; a group needs at least 2 resp"),
        ("elimination", 1, r"'elimination' and train.samples 1; it must lie in \[2, .* is 8$"),
        ("elimination", 9, r"'elimination' and train.samples 9; it must lie in \[2, .* is 8$"),
        ("pairs", 4, "plan.name is 'pairs' and train.samples 4; it must be 2, the chosen and"),
    ],
)
def test_a_number_of_samples_that_a_plan_cannot_use_is_refused(name, samples, said):
    with pytest.raises(ValueError, match=said):
        Plans(name=name).build(samples)


def test_uniform_is_one_round_of_all_prompts():
    drawn, metrics = Plans().build(2).collect(draw, prompts, 3, 2)
    assert drawn.texts == ["0.0.0", "0.0.1", "1.0.0", "1.0.1", "2.0.0", "2.0.1"] and metrics == {}
    assert drawn.items == prompts(3)


def test_joined_rounds_are_their_rows_with_groups_of_their_own():
    rounds = [draw(prompts(1), 2, 0), draw(prompts(3), 2, 1), draw(prompts(2), 2, 2)]
    rollout, texts, items = join(rounds)
    assert rollout.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert rollout.groups.dtype == np.int32 and rollout.samples == 2
    assert texts == [text for one in rounds for text in one.texts]
    assert [items[group].answer for group in rollout.groups] == [t.split(".")[0] for t in texts]
    # Prompts of 1, 1 to 3 and 1 to 2 tokens, at the right end of 3 slots.
    assert rollout.prompt_mask[::2].tolist() == [
        [0, 0, 1], [0, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1], [0, 1, 1]
    ]  # fmt: skip
    np.testing.assert_array_equal(rollout.prompt_tokens, 7 * rollout.prompt_mask)
    for name in ("tokens", "mask", "log_probs", "truncated", "rewards", "clean_rewards"):
        parts = [getattr(one.rollout, name) for one in rounds]
        np.testing.assert_array_equal(getattr(rollout, name), np.concatenate(parts))
        assert getattr(rollout, name).dtype == parts[0].dtype
    assert rounds[1].rollout.groups.tolist() == [0, 0, 1, 1, 2, 2]  # unchanged


def test_rows_are_regrouped_under_the_items_that_they_answer():
    one, items = draw(prompts(4), 3, 0), prompts(4)
    found = regroup(one, [9, 11, 3, 4], [items[3], items[1]])
    assert found.texts == ["3.0.0", "3.0.2", "1.0.0", "1.0.1"] and found.items == items[3::-2]
    assert found.rollout.groups.tolist() == [0, 0, 1, 1] and found.rollout.samples == 2
    np.testing.assert_array_equal(found.rollout.rewards, one.rollout.rewards[[9, 11, 3, 4]])
    for rows in ([0, 1, 2], []):
        with pytest.raises(ValueError, match=f"{len(rows)} rows cannot be divided among 2 items"):
            regroup(one, rows, items[:2])


def test_one_round_joined_is_that_round():
    one = draw(prompts(3), 2, 0)
    joined = join([one])
    jax.tree.map(np.testing.assert_array_equal, joined.rollout, one.rollout)
    assert joined.texts == one.texts and joined.items == one.items


@pytest.mark.parametrize(
    ("rounds", "said"),
    [([], "no responses per prompt"), ([(2, 0), (3, 1)], r"\[2, 3\] responses per prompt")],
)
def test_rounds_that_cannot_be_joined_are_refused(rounds, said):
    with pytest.raises(ValueError, match=f"rounds have {said}; join takes"):
        join([draw(prompts(2), *one) for one in rounds])


def test_a_name_that_no_plan_has_is_refused_and_settings_that_no_plan_reads():
    with pytest.raises(ValueError, match="name is 'refil'; it must be one of uniform.*module:Cl"):
        Plans(name="refil")
    with pytest.raises(ValueError, match="custom is .*; name is 'uniform', not .*, so .* at {}"):
        Plans(custom={"a": 1})


SOURCE = '''
import dataclasses
from dfpo_jax.plans.check import guarded
from dfpo_jax.plans.interface import Plan, join

@dataclasses.dataclass(frozen=True)
class Halves:
    """The prompts in two rounds."""
    rounds: int = 2

    def build(self, samples):
        def collect(draw, prompts, count, samples):
            items, size = prompts(count), count // self.rounds
            parts = [
                draw(items[size * n : size * (n + 1)], samples, n) for n in range(self.rounds)
            ]
            return join(parts), {"plan/rounds": self.rounds}
        return Plan(collect, frozenset({"groups"} if samples >= 2 else ()))
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_plans.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_plans", None)


def test_a_plan_of_the_users_own(module):
    plan = Plans(name="own_plans:Halves", custom={"rounds": 4}).build(2)
    drawn, metrics = plan.collect(draw, prompts, 4, 2)
    assert metrics == {"plan/rounds": 4} and drawn.texts[-1] == "3.3.1"
    with pytest.raises(ValueError, match="^custom.round is not a setting; custom has rounds"):
        Plans(name="own_plans:Halves", custom={"round": 4}).build(2)
    with pytest.raises(ValueError, match="Halves: collect returned 6 texts; there must be 8"):
        Plans(name="own_plans:Halves", custom={"rounds": 3}).build(2)


def one_round(draw, prompts, count, samples):
    return draw(prompts(count), samples, 0), {}


def changed(**values):
    """One round with other values in its `Drawn`, or in its rollout."""

    def collect(draw, prompts, count, samples):
        drawn, _ = one_round(draw, prompts, count, samples)
        outer = {name: values[name] for name in values if name in Drawn._fields}
        inner = {name: values[name] for name in values if name not in outer}
        return drawn._replace(rollout=drawn.rollout.replace(**inner))._replace(**outer), {}

    return collect


def same_round_twice(draw, prompts, count, samples):
    return join([draw(prompts(2), samples, 0), draw(prompts(4)[2:], samples, 0)]), {}


def endless(draw, prompts, count, samples):
    for round in range(10**9):
        draw(prompts(count), samples, round)


def impure():
    shift = iter(range(100))

    def collect(draw, prompts, count, samples):
        return draw(prompts(count + next(shift))[-count:], samples, 0), {}

    return collect


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({}, "build returned dict; it must return a dfpo_jax.plans.interface.Plan"),
        (Plan(None), "build returned Plan.*with a function collect"),
        (Plan(one_round, ["groups"]), r"gives is \['groups'\]; it must be a frozenset"),
        (Plan(lambda draw: None), "collect raised TypeError"),
        (Plan(lambda draw, p, c, s: draw(p(c), s)), "collect raised TypeError"),
        (Plan(lambda *args: None), r"collect returned NoneType; it must return \(Drawn, metrics"),
        (Plan(lambda *args: one_round(*args)[0]), "collect returned Drawn; it must return"),
        (Plan(lambda *args: (one_round(*args)[0], {"a": "b"})), "collect returned metrics {'a'"),
        (
            Plan(lambda d, p, c, s: one_round(d, p, 3, s)),
            "collect returned 6 texts; there must",
        ),
        (Plan(changed(texts=["x"])), "collect returned 1 texts"),
        (Plan(changed(texts=None)), "collect returned texts None; it must be a list of str"),
        (Plan(changed(items=["p"] * 4)), r"collect returned items \['p', .* list of Item"),
        (Plan(changed(rewards=np.zeros(4))), r"collect returned rollout.rewards of shape \(4,\)"),
        (
            Plan(changed(rewards=None)),
            r"collect returned rollout.rewards of shape \(\);",
        ),
        (Plan(changed(rollout=1)), "collect returned a rollout of type int; it must be a"),
        (Plan(changed(groups=np.arange(8))), r"collect returned groups .* indices of the 4 items"),
        (Plan(changed(groups=np.zeros(8))), r"collect returned groups .* indices of the 4 items"),
        (
            Plan(changed(groups=np.arange(8) % 4), frozenset({"groups"})),
            "gives has 'groups', and collect returned groups .* must be consecutive",
        ),
        (
            Plan(one_round, frozenset({"pool"})),
            r"collect returned rollout.baseline of shape \(\); there must be 8",
        ),
        (
            Plan(one_round, frozenset({"expert"})),
            r"collect returned rollout.expert.tokens of shape \(\); there must be 8",
        ),
        (Plan(one_round, written=["a"]), r"written is \['a'\]; it must be a function or None"),
        (Plan(one_round, range=(1.0, 1.0)), r"range is \(1.0, 1.0\); it must be None or \(low"),
        (Plan(one_round, round_samples=0), "round_samples is 0; it must be None or a whole n"),
        (Plan(one_round, range=3), "range is 3; it must be None or"),
        (Plan(changed(samples=1), frozenset({"groups"})), "gives has 'groups', .* samples=1"),
        (Plan(same_round_twice), "collect drew round 0; rounds must be numbered .* the next is 1"),
        (Plan(lambda d, p, c, s: d(p(c)[:0], s, 0)), r"collect drew responses to \[\]; it must"),
        (Plan(lambda d, p, c, s: d("ab", s, 0)), "collect drew responses to 'ab'; it must be"),
        (Plan(lambda d, p, c, s: d(p(c), 0, 0)), "collect drew 0 responses per prompt; it must"),
        (Plan(lambda d, p, c, s: d(p(c / 2), s, 0)), "collect asked for 2.0 prompts; it must be"),
        (Plan(changed(groups=np.zeros((8, 1), int))), "collect returned groups .* indices of"),
        (Plan(endless), "collect drew 1000 rounds for 4 prompts; it must end"),
        (Plan(impure()), "collect did something else the second time; it must be a pure"),
    ],
)
def test_what_breaks_the_contract_is_one_line(plan, said):
    with pytest.raises(ValueError, match=f"^my_plans:Mine: {said}") as refused:
        check_plan(plan, "my_plans:Mine", 2)
    assert "\n" not in str(refused.value)


def test_without_groups_rows_may_lie_in_any_order():
    check_plan(Plan(changed(groups=np.arange(8, dtype=np.int32) % 4)), "my_plans:Mine", 2)


class Unverified(RuntimeError):
    """What drawing raises."""


def in_training(own, draw=draw, samples=2):
    """A plan that passes the trial with 4 prompts, and collects for 6 as it does in training."""

    def collect(draw, prompts, count, samples):
        return (one_round if count == 4 else own)(draw, prompts, count, samples)

    check_plan(Plan(collect), "my_plans:Mine", samples)
    return guarded(Plan(collect), "my_plans:Mine").collect(draw, prompts, 6, samples)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (lambda d, p, c, s: one_round(d, p, 5, s), "collect returned 10 texts; there must be 12, "),
        (changed(rewards=np.zeros(8)), r"collect returned rollout.rewards of shape \(8,\); .* 12"),
        (changed(groups=np.arange(12)), "collect returned groups .* indices of the 6 items"),
        (
            changed(items=np.zeros(400)),
            r"collect returned items array\(.*\.\.\.; it must be a list",
        ),
        (same_round_twice, "collect drew round 0; .* the next is 1"),
        (lambda d, p, c, s: d(p(c), s, 1), "collect drew round 1; .* the next is 0"),
        (endless, "collect drew 1500 rounds for 6 prompts; it must end"),
        (lambda d, p, c, s: p(c)[c], "collect raised IndexError: list index out of range"),
        (lambda d, p, c, s: None, "collect returned NoneType; it must return"),
    ],
)
def test_what_a_plan_does_in_training_is_checked_too(own, said):
    with pytest.raises(ValueError, match=f"^my_plans:Mine: {said}") as refused:
        in_training(own)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_a_plan_that_is_built_is_guarded(module):
    plan = Plans(name="own_plans:Halves").build(2)
    with pytest.raises(ValueError, match="^own_plans:Halves: collect returned 8 texts; .* be 10"):
        plan.collect(draw, prompts, 5, 2)


def test_what_drawing_raises_passes_as_it_is():
    def failing(items, samples, round):
        raise Unverified("the verifier failed")

    with pytest.raises(Unverified, match="^the verifier failed$"):
        in_training(one_round, failing)


def test_metrics_of_a_plan_are_floats_in_a_dict_of_their_own():
    kept = {"a": np.float32(0.5)}
    _, metrics = in_training(lambda *inputs: (one_round(*inputs)[0], kept))
    assert metrics == {"a": 0.5} and type(metrics["a"]) is float and metrics is not kept
