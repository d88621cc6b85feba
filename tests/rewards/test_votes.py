"""Majority votes of the first policy: who wins, what is judged by it, what is refused."""

import json

import numpy as np
import pytest
from first_policy import Deaf, initial, scored

from dfpo_jax.rewards import Rewards
from dfpo_jax.rewards.interface import Link, Start, chain
from dfpo_jax.rewards.scale import Scale
from dfpo_jax.rewards.votes import Votes, majority


@pytest.mark.parametrize(
    ("votes", "accepted", "winner"),
    [
        ([1, 3, 2], np.eye(3), 1),
        ([2, 1, 2], np.eye(3), 0),  # a tie: the first that was given
        ([1, 2, 2], np.eye(3), 1),
        ([3, 2, 2], [[1, 0, 0], [0, 1, 1], [0, 1, 1]], 1),  # two spellings of one answer
        ([3, 2, 2], [[1, 0, 0], [0, 1, 0], [0, 1, 1]], 2),  # judged with the reference's eyes
        ([9, 1], [[0, 0], [0, 1]], 1),  # what is not right by itself is no reference
        ([9, 1], np.zeros((2, 2)), None),
        ([], np.zeros((0,)), None),
    ],
)
def test_the_majority_is_the_answer_with_most_votes(votes, accepted, winner):
    assert majority(votes, np.array(accepted, bool)) == winner


RESPONSES = {
    "a": ["It is left", "right", "left", "LEFT"],  # wrong, by three to one
    "b": ["right", "It is Right", "left", ""],
    "c": ["?", "?", "?", "up"],
    "d": ["?", "", "?", ""],
}


def begun(first, **settings):
    link = Votes(**{"samples": 4} | settings).build()
    made = json.loads(json.dumps(link.start.make(first)))
    return made, link.start.begin(made, first)


def test_labels_replace_the_answers():
    first = initial(RESPONSES)
    made, link = begun(first)
    assert made == {"labels": {"a": "left", "b": "right", "c": "up", "d": None}, "right": 1}
    assert link.start is None and "right for 25% of 4 prompts" in link.words
    pairs = [("a", "Left"), ("a", "right"), ("b", "It is right"), ("b", "left")]
    pairs += [("c", "up"), ("c", "right"), ("d", "right"), ("d", "?")]
    responses = scored(first, pairs)
    assert responses.clean.tolist() == [0, 1, 1, 0, 0, 1, 1, 0]
    found = link.apply(np.full(8, 0.3, np.float32), responses)
    assert found.dtype == np.float32 and found.tolist() == [1, 0, 1, 0, 1, 0, 0, 0]
    only = link.apply(responses.clean[6:], scored(first, pairs[6:]))
    assert only.tolist() == [0, 0] and link.range((0.0, 1.0)) == (0.0, 1.0)


def test_fewer_samples_may_elect_another_answer():
    first = initial({"a": ["right", "left", "left"]})
    assert [begun(first, samples=n)[0]["right"] for n in (1, 2, 3)] == [1, 1, 0]


def test_a_chain_starts_its_links_and_keeps_the_others():
    first = initial(RESPONSES)
    own = Start("own", {"k": 1}, lambda initial: len(initial.items), lambda made, initial: made)
    links = [Votes(samples=4).build(), Scale(factor=2.0).build()]
    both = chain(links)
    assert both.start.settings == {"votes": {"samples": 4}} and both.range((0.0, 1.0)) == (0.0, 2.0)
    link = both.start.begin(both.start.make(first), first)
    assert link.start is None and link.range((0.0, 1.0)) == (0.0, 2.0) and link.unit == 2.0
    responses = scored(first, [("a", "left"), ("a", "right")])
    assert link.apply(responses.clean, responses).tolist() == [2, 0]

    def plus(made, initial):
        return Link(lambda r, s: r + np.float32(made), lambda bounds: None)

    links.append(Link(None, lambda bounds: None, start=own._replace(begin=plus)))
    three = chain(links)
    made = three.start.make(first)
    assert made["own"] == 4 and set(three.start.settings) == {"votes", "own"}
    link = three.start.begin(made, first)
    assert link.apply(responses.clean, responses).tolist() == [6, 4]
    with pytest.raises(RuntimeError, match="before its `start`"):
        both.apply(responses.clean, responses)


def test_what_votes_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"samples is -1; it must lie in \[0, inf\]"):
        Votes(samples=-1)
    with pytest.raises(ValueError, match="rewards.votes.samples is 4; it needs a task with a decl"):
        Rewards(votes=Votes(samples=4)).build(None)
    deaf = initial({"a": ["left", "up", "left", "left"]}, Deaf())
    with pytest.raises(ValueError, match="of echo took none of 2 wrong answers .* does not read"):
        begun(deaf)
    first = initial(RESPONSES)
    made, _ = begun(first)
    more = initial(RESPONSES | {"e": ["right"]})
    with pytest.raises(ValueError, match="no label for 1 of 5 prompts, the first 'e'"):
        Votes(samples=4).build().start.begin(made, more)
