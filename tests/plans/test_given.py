"""Plans that give responses: an expert's beside the policy's, and preference pairs."""

import numpy as np
import pytest
from plan_draws import draw, given, prompts

from dfpo_jax.plans import Draw
from dfpo_jax.plans.hybrid import Hybrid
from dfpo_jax.plans.pairs import Pairs
from dfpo_jax.tasks.base import Item

SOURCE = Draw(draw, given)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("column", ["", "rejected"])
def test_an_experts_response_stands_beside_every_row_of_its_prompt(column, samples):
    plan = Hybrid(column).build(samples)
    drawn, metrics = plan.collect(SOURCE, prompts, 12, samples)
    plain = draw(prompts(12), samples, 0)
    assert drawn.texts == plain.texts and drawn.items == plain.items and metrics == {}
    for name in ("tokens", "mask", "log_probs", "rewards", "groups", "prompt_tokens"):
        found, expected = (getattr(x.rollout, name) for x in (drawn, plain))
        np.testing.assert_array_equal(found, expected)
    written = [plan.written(item) for item in prompts(12)]
    assert written == [[f"{i}.bad" if column else str(i)] for i in range(12)]
    # `given` writes item and length of the text.
    expected = [[i, 0, len(written[i][0])] for i in range(12) for _ in range(samples)]
    assert drawn.rollout.expert.tokens.tolist() == expected
    assert drawn.rollout.expert.mask.shape == (12 * samples, 3)
    assert plan.gives == ({"expert", "groups"} if samples > 1 else {"expert"})


@pytest.mark.parametrize(
    ("column", "item", "said"),
    [
        ("", Item("p", ""), "plan.hybrid.column is '', and prompt 'p' has no answer; it must name"),
        ("cot", Item("p", "a"), "plan.hybrid.column is 'cot'; prompt 'p' has no columns, as it co"),
        ("cot", prompts(1)[0], "row of prompt '1' has no 'cot', which plan.hybrid.column names; "),
        (
            "n",
            Item("p", "", {"row": {"n": None}}),
            "column 'n', .* of 'p' is null; it must be a",
        ),
    ],
)
def test_an_expert_that_is_missing_is_one_line(column, item, said):
    for call in (
        lambda plan: plan.written(item),
        lambda plan: plan.collect(SOURCE, lambda count: [item] * count, 2, 2),
    ):
        with pytest.raises(ValueError, match=said) as refused:
            call(Hybrid(column).build(2))
        assert "\n" not in str(refused.value)


def test_pairs_are_rows_of_the_data_set_with_rewards_of_their_own():
    plan = Pairs().build(2)
    drawn, _ = plan.collect(SOURCE, prompts, 3, 2)
    assert drawn.texts == ["0.good", "0.bad", "1.good", "1.bad", "2.good", "2.bad"]
    assert drawn.rollout.rewards.tolist() == drawn.rollout.clean_rewards.tolist() == [1, -1] * 3
    assert drawn.rollout.tokens[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert drawn.rollout.groups.tolist() == [0, 0, 1, 1, 2, 2] and drawn.rollout.samples == 2
    assert not drawn.rollout.log_probs.any() and drawn.items == prompts(3)
    assert plan.range == (-1.0, 1.0) and plan.written(prompts(1)[0]) == ["0.good", "0.bad"]
    swapped, _ = Pairs("rejected", "chosen").build(2).collect(SOURCE, prompts, 1, 2)
    assert swapped.texts == ["0.bad", "0.good"]


def test_a_pair_that_is_missing_is_one_line():
    with pytest.raises(ValueError, match="has no 'best', which plan.pairs.chosen names; it has ch"):
        Pairs("best").build(2).written(prompts(1)[0])
    with pytest.raises(
        ValueError, match="plan.pairs.chosen is 'chosen'; prompt 'p' has no columns"
    ):
        Pairs().build(2).written(Item("p", "a"))
    with pytest.raises(ValueError, match="rejected is ''; it must name a column"):
        Pairs(rejected="")
    with pytest.raises(
        ValueError, match="chosen and rejected are both 'chosen'; they must name two"
    ):
        Pairs(rejected="chosen")
