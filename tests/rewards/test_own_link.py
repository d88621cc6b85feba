"""A link of the user's own: it acts first, and what is wrong with it is one line."""

import sys

import numpy as np
import pytest
from first_policy import initial
from first_policy import scored as scored_of
from scored_responses import scored

from dfpo_jax.rewards import Rewards
from dfpo_jax.rewards.check import check_link
from dfpo_jax.rewards.flip import Flip
from dfpo_jax.rewards.interface import Link, Start, chain, not_begun
from dfpo_jax.tasks.base import Item

SOURCE = '''
import dataclasses
import numpy as np
from dfpo_jax.rewards.interface import Link, generator

@dataclasses.dataclass(frozen=True)
class Bonus:
    """Adds `size` to responses that repeat their prompt's answer."""
    size: float = 0.5

    def __post_init__(self):
        if self.size < 0:
            raise ValueError(f"size is {self.size}; it must be at least 0")

    def build(self):
        def apply(rewards, scored):
            right = [i.answer == t for i, t in zip(scored.items, scored.texts, strict=True)]
            return rewards + np.float32(self.size) * np.array(right, np.float32)
        return Link(apply, lambda r: None if r is None else (r[0], r[1] + self.size))

@dataclasses.dataclass
class Broken:
    def build(self):
        raise KeyError("weights")

class NotOfSettings:
    def build(self):
        return None
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_links.py").write_text(SOURCE)
    (tmp_path / "does_not_load.py").write_text("1 +\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_links"
    sys.modules.pop("own_links", None)


def test_a_link_of_the_users_own_acts_first(module):
    rewards = Rewards(name="own_links:Bonus", custom={"size": 2.0}, flip=Flip(false_positive=1.0))
    link = rewards.build((0.0, 1.0))
    assert link.range((0.0, 1.0)) == (0.0, 3.0)
    clean = np.array([0.0, 1.0, 1.0], np.float32)
    responses = scored(clean)._replace(texts=["a", "a", "x"])
    # 2, 3, 1: only the last lies below the midpoint, 1.5.
    np.testing.assert_array_equal(link.apply(clean, responses), [2.0, 3.0, 3.0])
    assert link.words.startswith("own_links:Bonus changed them; ")


@pytest.mark.parametrize(
    ("name", "custom", "said"),
    [
        ("bonus", {}, "^name is 'bonus'; a link of your own is named module:Class"),
        ("own_links:Bonsu", {}, "^name is 'own_links:Bonsu', which .*AttributeError"),
        ("no_such_links:Bonus", {}, r"does not import: ModuleNotFoundError: No module"),
        ("does_not_load:Bonus", {}, r"does not import: SyntaxError"),
        ("own_links:NotOfSettings", {}, "a link must be a dataclass with a method build"),
        ("own_links:generator", {}, "a link must be a dataclass with a method build"),
        ("own_links:Bonus", {"sise": 1}, "^custom.sise is not a setting; custom has size"),
        ("own_links:Bonus", {"size": -1}, r"^custom.size is -1.0; it must be at least 0"),
        ("own_links:Broken", {}, "own_links:Broken: build raised KeyError: 'weights'"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(module, name, custom, said):
    with pytest.raises(ValueError, match=said) as refused:
        Rewards(name=name, custom=custom).build((0.0, 1.0))
    assert "\n" not in str(refused.value)


def same(bounds):
    return bounds


def keep(rewards, scored):
    return rewards


def in_place(rewards, scored):
    rewards += 1
    return rewards


def unseeded(rewards, scored):
    return rewards + np.random.default_rng().standard_normal(len(rewards)).astype(np.float32)


@pytest.mark.parametrize(
    ("link", "said"),
    [
        (None, "build returned NoneType; it must return a dfpo_jax.rewards.interface.Link"),
        (Link(None, same), "apply is None; it must be a function"),
        (Link(lambda r, s: r, "same"), "range is 'same'; it must be a function"),
        (Link(keep, same, 3), "words is 3; it must be a string"),
        (Link(keep, same, None), "words is None; it must be a string"),
        (Link(keep, same, unit="1"), "unit is '1'; it must be a finite number above 0"),
        (Link(keep, same, unit=0.0), "unit is 0.0; it must be a finite number above 0"),
        (Link(keep, same, unit=-1), "unit is -1; it must be a finite number above 0"),
        (Link(keep, same, unit=np.inf), "unit is inf; it must be a finite number above 0"),
        (Link(keep, same, unit=np.nan), "unit is nan; it must be a finite number above 0"),
        (Link(keep, same, clean=1.0), "clean is 1.0; it must be a function or None"),
        (Link(keep, same, clean=lambda b: None), "clean returned None .* must return .low, high."),
        (Link(keep, same, unit=None), "unit is None; it must be a finite number above 0"),
        (Link(lambda r: r, same), "apply raised TypeError"),
        (Link(lambda r, s: r[s.payload], same), "apply raised AttributeError"),
        (Link(lambda r, s: list(r), same), r"apply returned list; .*numpy array float32 \(3,\)"),
        (Link(lambda r, s: r.astype(float), same), r"apply returned float64 \(3,\); it must ret"),
        (Link(lambda r, s: r[:2], same), r"apply returned float32 \(2,\); .* float32 \(3,\)"),
        (Link(lambda r, s: r[:, None], same), r"apply returned float32 \(3, 1\); it must return"),
        (Link(lambda r, s: r * np.float32(np.nan), same), r"apply made nan of the reward 0.0"),
        (
            Link(lambda r, s: r + np.float32(1), same),
            r"apply made 1.5 .* within \(0.0, 1.0\)",
        ),
        (Link(lambda r, s: r / np.float32(0), lambda b: None), "apply made nan .* must be finite"),
        (Link(in_place, lambda b: None), "apply changed the rewards that it was given"),
        (Link(unseeded, lambda b: None), "apply gave two results for the same responses"),
        (Link(lambda r, s: r, lambda: None), "range raised TypeError"),
        (
            Link(lambda r, s: r, lambda b: 1.0),
            "range returned 1.0 .* must return None, where no",
        ),
        (Link(lambda r, s: r, lambda b: (0, "1")), r"range returned \(0, '1'\)"),
        (Link(lambda r, s: r, lambda b: (1.0, 0.0)), r"range returned \(1.0, 0.0\) .* in this ord"),
        (Link(lambda r, s: r, lambda b: (0.0, np.inf)), r"range returned \(0.0, inf\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_breaks_the_contract_is_one_line(link, said):
    with pytest.raises(ValueError, match=rf"^my_links:Mine: {said}") as refused:
        check_link(link, "my_links:Mine", (0.0, 1.0))
    assert "\n" not in str(refused.value)


def test_the_trial_takes_the_tasks_own_items_where_there_are_some():
    def apply(rewards, scored):
        return rewards * np.array([item.payload["weight"] for item in scored.items], np.float32)

    link = Link(apply, lambda bounds: None)
    with pytest.raises(ValueError, match="m:L: apply raised TypeError"):
        check_link(link, "m:L")
    check_link(link, "m:L", items=[Item("p", "a", {"weight": 2.0}), Item("q", "b", {"weight": 1})])


def test_what_a_link_gives_is_checked_in_training_too():
    def apply(rewards, scored):
        return rewards / np.where(scored.step == 3, np.float32(0.0), np.float32(1.0))

    guarded = chain([check_link(Link(apply, same), "m:L", (1.0, 2.0))])
    clean = np.ones(2, np.float32)
    np.testing.assert_array_equal(guarded.apply(clean, scored(clean, (1.0, 2.0), 2)), clean)
    with np.errstate(divide="ignore"):
        with pytest.raises(ValueError, match=r"m:L: apply made inf of the reward 1.0; it must be"):
            guarded.apply(clean, scored(clean, (1.0, 2.0), 3))


def test_what_a_link_raises_in_training_is_one_line():
    def apply(rewards, scored):
        if scored.step == 3:
            raise KeyError("no\nweights")
        return rewards

    guarded = check_link(Link(apply, same, unit=np.float32(2)), "m:L", (1.0, 2.0))
    assert guarded.unit == 2.0 and type(guarded.unit) is float
    clean = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=r"^m:L: apply raised KeyError: 'no\\nweights'$"):
        guarded.apply(clean, scored(clean, (1.0, 2.0), 3))


def started(**changes):
    """A link that adds the number of prompts, once it has begun."""

    def begin(made, initial):
        return Link(lambda r, s: r + np.float32(made), lambda bounds: None)

    start = Start("own", {}, lambda initial: len(initial.items), begin)._replace(**changes)
    return Link(not_begun, lambda bounds: None, start=start)


def test_a_link_that_starts_is_checked_when_it_acts():
    link = check_link(started(), "m:L", (0.0, 1.0))
    first = initial({"a": ["right"], "b": ["left"]})
    begun = link.start.begin(link.start.make(first), first)
    responses = scored_of(first, [("a", "right")])
    assert begun.apply(responses.clean, responses).tolist() == [3.0]

    def wrong(made, initial):
        return Link(lambda r, s: r.astype(float), lambda bounds: None)

    begun = check_link(started(begin=wrong), "m:L").start.begin(2, first)
    with pytest.raises(ValueError, match=r"^m:L: apply returned float64 \(1,\); it must return"):
        begun.apply(responses.clean, responses)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"begin": lambda made, initial: made}, "start.begin must return a Link that has no start"),
        ({"begin": lambda made, initial: started()}, "start.begin must return a Link that has no"),
        ({"begin": lambda made, initial: made.x}, "start.begin raised AttributeError"),
        ({"make": lambda initial: initial.x}, "start.make raised AttributeError"),
        ({"make": lambda initial: np.zeros(2)}, "start.make returned ndarray, which JSON does not"),
        ({"make": lambda initial: {1: 2}}, "start.make returned dict, which JSON does not give"),
        ({"make": lambda initial: float("nan")}, "start.make returned float, which JSON does not"),
    ],
)
def test_a_wrong_start_is_refused(change, said):
    start = check_link(started(**change), "m:L").start
    with pytest.raises(ValueError, match=f"^m:L: {said}"):
        start.begin(start.make(initial({"a": ["right"]})), None)


def test_a_start_of_another_type_is_refused():
    with pytest.raises(ValueError, match="m:L: start is str; it must be None or a dfpo_jax.rew"):
        check_link(Link(not_begun, lambda bounds: None, start="now"), "m:L")
