"""Noise that responses share: by group, by prompt, by one accepted answer, by a surface feature."""

import numpy as np
import pytest
from scipy import stats
from scored_responses import scored

from dfpo_jax.rewards import Rewards
from dfpo_jax.rewards.feature import Feature
from dfpo_jax.rewards.flip import Flip
from dfpo_jax.rewards.gaussian import Gaussian
from dfpo_jax.rewards.interface import LARGEST, prompt_uniform
from dfpo_jax.rewards.master_key import MasterKey
from dfpo_jax.tasks.base import Item

SIZE = 10_000


def responses(rewards, prompts, texts=None, step=0, round=0, bounds=(0.0, 1.0), **options):
    """Responses to these prompts, with their rewards and texts."""
    found = scored(rewards, bounds, step, round, **options)
    items = [Item(prompt, "a") for prompt in prompts]
    return found._replace(items=items, texts=texts or ["a"] * len(items))


def made(settings, *inputs, **options):
    rows = responses(*inputs, **options)
    return settings.build().apply(rows.clean, rows)


def prompts(size=SIZE):
    return [f"What is {i} + {i * i}?" for i in range(size)]


def within(count, size, probability):
    low, high = stats.binom.ppf([1e-6, 1 - 1e-6], size, probability)
    return low <= count <= high


# --- the hash -----------------------------------------------------------------------------------


def test_the_number_of_a_prompt_is_uniform_and_a_function_of_its_text_alone():
    rows = responses(np.zeros(SIZE), prompts())
    numbers = prompt_uniform(3, 0, rows, fresh=False)
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    assert stats.kstest(numbers, "uniform").pvalue > 1e-4
    turned = rows._replace(items=rows.items[::-1], step=9, round=2)
    np.testing.assert_array_equal(prompt_uniform(3, 0, turned, fresh=False)[::-1], numbers)
    others = [
        prompt_uniform(4, 0, rows, fresh=False),
        prompt_uniform(3, 1, rows, fresh=False),
        prompt_uniform(3, 0, rows, fresh=True),
        prompt_uniform(3, 0, rows._replace(step=1), fresh=True),
    ]
    apart = np.corrcoef([numbers, *others])[~np.eye(5, dtype=bool)]
    assert np.abs(apart).max() < 5.0 / np.sqrt(SIZE)
    same = prompt_uniform(3, 0, rows._replace(round=1), fresh=True)
    np.testing.assert_array_equal(same, others[2])  # an iteration's rounds share their draws


def test_the_numbers_of_a_version_are_those_of_the_next():
    rows = responses(np.zeros(2), ["1 + 1 =", "Wie groß?"], step=7)
    found = prompt_uniform(11, 0, rows, fresh=False)
    np.testing.assert_array_equal(found, [0.08546476762626742, 0.8560907250404077])
    np.testing.assert_array_equal(
        prompt_uniform(11, 0, rows, fresh=True), [0.988678457875158, 0.36253181507009946]
    )


# --- flips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["group", "prompt"])
def test_a_draw_flips_all_responses_to_a_prompt(unit):
    names = [name for name in prompts() for _ in range(2)]
    clean = np.tile([0.0, 1.0], SIZE)
    wrong, right = made(Flip(0.2, 0.2, 5, unit), clean, names).reshape(SIZE, 2).T
    np.testing.assert_array_equal(wrong, 1.0 - right)  # both flip, or none does
    assert within(wrong.sum(), SIZE, 0.2)
    wrong, right = made(Flip(0.1, 0.3, 5, unit), clean, names).reshape(SIZE, 2).T
    assert within(wrong.sum(), SIZE, 0.1) and within((1 - right).sum(), SIZE, 0.3)
    assert np.all(right[wrong == 1.0] == 0.0)  # the draws below 0.1 are below 0.3


def test_a_group_draws_anew_in_every_iteration_and_a_prompt_never():
    def flips(unit, **place):
        return made(Flip(0.5, unit=unit), np.zeros(2000), prompts(2000), **place)

    steps = np.stack([flips("group", step=step) for step in range(4)])
    apart = np.corrcoef(steps)[~np.eye(4, dtype=bool)]
    assert np.abs(apart).max() < 5.0 / np.sqrt(2000)
    np.testing.assert_array_equal(flips("group", step=2, round=1), steps[2])
    for place in ({"step": 3}, {"step": 8, "round": 4}):
        np.testing.assert_array_equal(flips("prompt", **place), flips("prompt"))
    other = made(Flip(0.5, seed=1, unit="prompt"), np.zeros(2000), prompts(2000))
    assert np.any(flips("prompt") != other)


def test_flips_of_any_unit_use_the_midpoint_and_the_ends_of_the_range():
    for unit in ("group", "prompt"):
        found = made(Flip(1.0, 1.0, 0, unit), [-1.0, 0.9, 1.0, 2.5], "abcd", bounds=(-1.0, 3.0))
        np.testing.assert_array_equal(found, [3.0, 3.0, -1.0, -1.0])
        with pytest.raises(ValueError, match="rewards.flip has .*needs a task with a declared"):
            Rewards(flip=Flip(0.2, unit=unit)).build(None)


# --- the master key -----------------------------------------------------------------------------


def test_the_key_is_accepted_on_its_share_of_the_prompts_whatever_the_step():
    key = MasterKey("42", 0.3, seed=2)
    found = made(key, np.zeros(SIZE), prompts(), ["42"] * SIZE)
    assert set(np.unique(found)) == {0.0, 1.0} and within(found.sum(), SIZE, 0.3)
    again = made(key, np.zeros(SIZE), prompts(), ["42"] * SIZE, step=5, round=1)
    np.testing.assert_array_equal(found, again)
    others = made(key, np.zeros(SIZE), prompts(), ["43"] * SIZE)
    np.testing.assert_array_equal(others, np.zeros(SIZE))


@pytest.mark.parametrize(
    ("match", "accepted"),
    [
        ("answer", [True, True, True, False, False, False]),
        ("response", [True, True, False, False, False, False]),
        ("contains", [True, True, True, True, True, False]),
    ],
)
def test_where_the_key_must_be(match, accepted):
    texts = ["42", " 42\n", "so #### 42", "I say 42!", "421", ""]
    rows = responses([0.25] * 6, "abcdef", texts, bounds=(0.0, 2.0))

    def read(item, text):
        return text.rpartition("####")[2].strip() or None

    link = MasterKey(" 42 ", 1.0, match).build()
    found = link.apply(rows.clean, rows._replace(read=read))
    np.testing.assert_array_equal(found, np.where(accepted, np.float32(2.0), np.float32(0.25)))


def test_a_right_response_stays_right_and_a_range_is_needed():
    found = made(MasterKey("x", 1.0), [1.0, 0.0, 0.0], "abc", ["yes", "x", "no"])
    np.testing.assert_array_equal(found, [1.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="master_key has coverage 0.5; it needs a task with a de"):
        Rewards(master_key=MasterKey("x", 0.5)).build(None)
    with pytest.raises(ValueError, match=r"low end is below its high end.*\(1.0, 1.0\)"):
        Rewards(master_key=MasterKey("x", 0.5)).build((1.0, 1.0))


# --- Gaussian noise by prompt -------------------------------------------------------------------


def test_noise_on_a_share_of_the_prompts_stays_with_them():
    names = [name for name in prompts(SIZE // 2) for _ in range(2)]
    whole = made(Gaussian(2.0, 1), np.zeros(SIZE), names, step=4)
    part = made(Gaussian(2.0, 1, 0.4), np.zeros(SIZE), names, step=4)
    noisy = part != 0.0
    np.testing.assert_array_equal(part[noisy], whole[noisy])  # of those that have it, the same
    first, second = noisy.reshape(-1, 2).T
    np.testing.assert_array_equal(first, second)
    assert within(first.sum(), SIZE // 2, 0.4)
    later = made(Gaussian(2.0, 1, 0.4), np.zeros(SIZE), names, step=5)
    np.testing.assert_array_equal(later != 0.0, noisy)
    assert np.all(later[noisy] != part[noisy])


def test_a_pattern_says_which_prompts_have_noise():
    found = made(Gaussian(2.0, pattern="^[a-l]"), np.zeros(4), ["apple", "zebra", "lime", "a"])
    np.testing.assert_array_equal(found != 0.0, [True, False, True, True])


# --- the feature --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected", "bounds"),
    [
        (Feature(0.5, text="hm"), [1.5, 1.0, 0.5], (0.0, 1.5)),
        (Feature(-0.5, text="hm"), [0.5, 1.0, -0.5], (-0.5, 1.0)),
        (Feature(0.6, "count", "hm", 3), [1.2, 1.0, 0.6], (0.0, 1.6)),
        (Feature(0.5, "length"), [1.1, 1.5, 0.0], (0.0, 1.5)),
    ],
)
def test_a_feature_adds_what_a_response_shows_of_it(settings, expected, bounds):
    texts = ["hm", "h m", "hmhmhmhm"]
    found = made(settings, [1.0, 1.0, 0.0], "abc", texts, lengths=[2, 10, 0])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(settings.build().range((0.0, 1.0)), bounds, rtol=1e-6)
    assert settings.build().range(None) is None


# --- words, order and refusals ------------------------------------------------------------------


def test_words_say_what_acts():
    rewards = Rewards(
        flip=Flip(0.2, 0.125, unit="group"),
        master_key=MasterKey(" 42 ", 0.3),
        gaussian=Gaussian(0.5, share=0.25),
        feature=Feature(-0.5, "count", "hm", 3),
    )
    assert rewards.build((0.0, 1.0)).words.split("; ") == [
        "wrong responses to 20% of the prompts, drawn anew in every iteration, were rewarded as "
        "right",
        "right responses to 12.5% of the prompts, drawn anew in every iteration, were rewarded as "
        "wrong",
        "'42' was rewarded as right on 30% of the prompts",
        "Gaussian noise of standard deviation 0.5 was added on 25% of the prompts",
        "responses that contained 'hm' 3 times or more got -0.5, others a share of it",
    ]
    assert "always the same ones" in Flip(0.2, unit="prompt").build().words
    assert "that match '^a'" in Gaussian(0.5, pattern="^a").build().words
    assert Feature(0.5, "length").build().words.startswith("responses at the length limit got +0.5")
    assert Feature(0.5, text="x").build().words == "responses that contained 'x' got +0.5"


def test_the_key_acts_behind_flips_and_the_feature_behind_the_correction():
    key = Rewards(flip=Flip(1.0, 1.0), master_key=MasterKey("x", 1.0)).build((0.0, 1.0))
    rows = responses([1.0, 0.0], "ab", ["x", "y"])
    np.testing.assert_array_equal(key.apply(rows.clean, rows), [1.0, 1.0])


@pytest.mark.parametrize(
    ("section", "settings", "said"),
    [
        (Flip, {"unit": "batch", "false_positive": 0.1}, "unit is 'batch'; .* response, group, pr"),
        (Flip, {"unit": "group"}, "unit is 'group'; nothing reads it while false_positive and"),
        (Gaussian, {"std": 1.0, "share": 1.1}, r"share is 1.1; it must lie in \[0, 1\]"),
        (Gaussian, {"std": 1.0, "share": 0.0}, "share is 0.0; it must be above 0"),
        (Gaussian, {"share": 0.5}, "share is 0.5; nothing reads it while std is 0"),
        (Gaussian, {"pattern": "a"}, "pattern is 'a'; nothing reads it while std is 0"),
        (Gaussian, {"std": 1.0, "pattern": "["}, r"pattern is '\[', not a regular expression: "),
        (
            Gaussian,
            {"std": 1.0, "pattern": "a", "share": 0.5},
            "share is 0.5; pattern is 'a', which decides which prompts have noise, so it must",
        ),
        (MasterKey, {"coverage": -0.1}, r"coverage is -0.1; it must lie in \[0, 1\]"),
        (MasterKey, {"coverage": float("nan")}, "coverage is nan; it must lie"),
        (MasterKey, {"coverage": 0.5}, "answer is '' and coverage 0.5; it must be a text"),
        (MasterKey, {"coverage": 0.5, "answer": " "}, "answer is ' ' and coverage 0.5"),
        (MasterKey, {"coverage": 0.5, "answer": "a", "match": "x"}, "match is 'x'; it must be one"),
        (MasterKey, {"coverage": 0.5, "answer": "a", "seed": -1}, "seed is -1; it must lie in"),
        (MasterKey, {"answer": "a"}, "answer is 'a'; nothing reads it while coverage is 0"),
        (MasterKey, {"match": "contains"}, "match is 'contains'; nothing reads it while cov"),
        (MasterKey, {"seed": 1}, "seed is 1; nothing reads it while coverage is 0"),
        (Feature, {"bonus": 2 * LARGEST}, "bonus is 2000000000.0; it must lie in"),
        (Feature, {"bonus": float("nan")}, "bonus is nan; it must lie in"),
        (Feature, {"bonus": 1.0}, "text is ''; kind is 'contains', so it must be a text"),
        (Feature, {"bonus": 1.0, "kind": "count"}, "text is ''; kind is 'count', so it"),
        (Feature, {"bonus": 1.0, "kind": "colour"}, "kind is 'colour'; it must be one of"),
        (Feature, {"bonus": 1.0, "text": "a", "most": 2}, "most is 2; kind is 'contains', so it"),
        (Feature, {"bonus": 1.0, "kind": "length", "text": "a"}, "text is 'a'; kind is 'length'"),
        (Feature, {"bonus": 1.0, "kind": "count", "text": "a", "most": 0}, "most is 0; it must"),
        (Feature, {"text": "a"}, "text is 'a'; nothing reads it while bonus is 0"),
        (Feature, {"kind": "length"}, "kind is 'length'; nothing reads it while bonus is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(section, settings, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        section(**settings)
