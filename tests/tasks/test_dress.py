"""A dress rehearsal: references of every kind as models write them, right and wrong.

`_verifiers.writings` makes the texts and `_verifiers.dresses` puts them into responses; what each
of them should earn follows from how it was made. The rates are printed (pytest -s).
"""

import random

import pytest
from _verifiers.dresses import dresses, pairs
from _verifiers.writings import kind_of

from dfpo_jax.tasks import Item
from dfpo_jax.tasks.presets import PRESETS
from dfpo_jax.tasks.verifiers import Verifier, VerifierConfig

REFERENCES = {
    "integer": ["0", "1", "18", "1234", "13535"],
    "negative": ["-3", "-50", "-1250"],
    "thousands": ["1,234", "-9,500", "109,200,000"],
    "decimal": ["0.5", "3.14", "-2.75", "1234.5"],
    "fraction": ["3/4", "-1/2", r"\frac{14}{3}", r"\frac{243}{625}"],
    "percent": ["10%", r"10\%", "12.5%"],
    "currency": ["$18", r"\$18.90", "$1,250"],
    "unit": ["18 dollars", "5 km", "2.5 hours"],
    "set": ["1,2,3", "1,-2", "4, 6, 14, 15"],
    "interval": ["[2,5)", r"(-\infty, 2)", "(0,1]", r"[3,\infty)"],
    "expression": ["p - q", r"3\sqrt{13}", "x^3+3x-6", "6 - 5i", r"\pi", "52_8", "x=5", "3x^2"],
    "letter": ["A", "B", "C", "D"],
    "words": [r"\text{Evelyn}", "even", "Ada Lovelace", "The Beatles", "blue whale"],
}
ANSWERS = [answer for answers in REFERENCES.values() for answer in answers]
VERIFIERS = {
    name: (p["verifier"]["name"], p["verifier"].get("extract", "none"))
    for name, p in PRESETS.items()
}


def rehearse(name, extract, answers, most=10**9):
    """Rates of false negatives and false positives, and the number of pairs."""
    tried = list(pairs(name, extract, answers))
    random.Random(0).shuffle(tried)
    tried = tried[:most]
    verifier = Verifier(VerifierConfig(name, extract, timeout=30.0), "dress")
    items = [Item("?", pair.reference.answer, index=i) for i, pair in enumerate(tried)]
    verdicts = verifier.judge(items, [pair.response for pair in tried])
    assert (verifier.errors, verifier.timeouts) == (0, 0)
    wrong = {True: [], False: []}
    for pair, verdict in zip(tried, verdicts, strict=True):
        if (verdict.reward == 1.0) != pair.right:
            wrong[pair.right].append((pair.reference.answer, pair.response))
    right = sum(pair.right for pair in tried)
    rates = len(wrong[True]) / right, len(wrong[False]) / (len(tried) - right)
    print(
        f"{name}, {extract}: {len(tried)} pairs, false negatives {rates[0]:.2%}, "
        f"false positives {rates[1]:.3%}; such as {wrong[True][:3]}, {wrong[False][:3]}"
    )
    return *rates, len(tried)


def test_references_are_of_the_kinds_that_they_stand_under():
    assert {a: kind_of(a) for a in ANSWERS} == {
        a: k for k, group in REFERENCES.items() for a in group
    }


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_has_twenty_dresses(preset):
    assert len(dresses(*VERIFIERS[preset])) >= 20


@pytest.mark.parametrize(
    ("name", "extract", "least"),
    [
        ("number", "hashes,boxed,last_number", 4000),  # the preset gsm8k
        ("choice", "none", 500),  # gpqa
        ("normalised", "tags,none", 4000),  # simpleqa
        ("normalised", "tags", 2000),  # hle
        ("normalised", "none", 2000),  # configs/jsonl.py
        ("number", "last_number", 2000),  # the other configurations
        ("choice", "tags,none", 500),
        ("exact", "none", 500),
    ],
)
def test_dress_rehearsal(name, extract, least):
    negatives, positives, count = rehearse(name, extract, ANSWERS)
    assert negatives < 0.02 and positives < 0.001 and count >= least


@pytest.mark.slow
def test_dress_rehearsal_of_mathematics():
    pytest.importorskip("math_verify")
    negatives, positives, count = rehearse("math_verify", "boxed", ANSWERS, most=4000)
    assert negatives < 0.02 and positives < 0.001 and count >= 2000


def test_every_verifier_of_the_presets_is_rehearsed():
    rehearsed = {
        ("number", "hashes,boxed,last_number"),
        ("choice", "none"),
        ("math_verify", "boxed"),
    }
    assert set(VERIFIERS.values()) == rehearsed | {
        ("normalised", "tags,none"),
        ("normalised", "tags"),
    }


GSM8K = [
    ("16 - 3 - 4 = <<16-3-4=9>>9 eggs\n9 * 2 = $<<9*2=18>>18\n#### 18", "18"),
    ("It takes 2/2=<<2/2=1>>1 bolt\n2+1=<<2+1=3>>3 bolts of fabric\n#### 3", "3"),
    ("So he made 200,000-130,000=$<<200000-130000=70000>>70,000\n#### 70,000", "70,000"),
    ("3*3=<<3*3=9>>9 sprints\n9*60=<<9*60=540>>540 meters\n#### 540", "540"),
    ("She lost 2 - 5 = <<2-5=-3>>-3 points\n#### -3", "-3"),
    ("That is 109,200,000 people.\n#### 109,200,000", "109,200,000"),
    ("He pays .5*3=$<<.5*3=1.5>>1.5\n#### 1.5", "1.5"),
]
MATH = r"""
\left( 3, \frac{\pi}{2} \right) | p - q | \frac{14}{3} | 9 | \text{Evelyn} | 42 | 27
90^\circ | 3\sqrt{13} | 4 | 2220 | \frac{3}{56} | 284 | 5 | \sqrt{51} | 6 - 5i | -50 | \pi
28 | 3 | 6+9i | 13535 | x=5 | 10 | 1,-2 | 144 | 78 | -2 + 7i | 225 | 52_8 | 11\sqrt2 | 720
\frac{243}{625} | -125 | 3x^2 | (-\infty, 2) \cup (3, \infty) | \$18.90
\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix} | \text{(C)} | x^3+3x-6 | 10\% | 1,2,3 | [2,5)
\text{even} | \$32,\!348 | \frac{1}{2} | 2k+2 | 4210_5 | 12\text{ cm} | 1 \pm \sqrt{19}
\text{June 20} | \frac{\sqrt{21}}{21} | \text{ellipse} | (-\infty,0)\cup(0,\infty)
y = 2x + 3 | 6,\!720 | \text{Navin} | \begin{pmatrix} 16/49 \\ 48/49 \\ 24/49 \end{pmatrix}
32_9 | \dfrac{1}{3} | x \in [-2,7] | \sin^2 y | 0.\overline{1331}
"""


def test_the_published_answers_of_gsm8k_are_rewarded():
    name, extract = VERIFIERS["gsm8k"]
    verifier = Verifier(VerifierConfig(name, extract), "gsm8k")
    for response, answer in GSM8K:
        verdicts = verifier.judge([Item("?", answer)] * 2, [response, f"The answer is {answer}."])
        assert [v.reward for v in verdicts] == [1.0, 1.0], response


def test_the_published_answers_of_math_500_are_rewarded():
    pytest.importorskip("math_verify")
    verifier = Verifier(VerifierConfig(*VERIFIERS["math500"], timeout=30.0), "math500")
    answers = [a.strip() for line in MATH.split("\n") for a in line.split("|") if a]
    for dress in (r"The answer is $\boxed{@}$.", r"\[\boxed{@.}\]"):
        verdicts = verifier.judge(
            [Item("?", a, index=i) for i, a in enumerate(answers)],
            [dress.replace("@", a) for a in answers],
        )
        assert {a: v for a, v in zip(answers, verdicts, strict=True) if v != (1.0, "ok", "")} == {}
