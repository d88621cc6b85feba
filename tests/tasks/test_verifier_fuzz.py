"""Random texts and mutations of right answers: nothing hangs, raises, or earns by accident."""

import random
import re
import string
import time
import unicodedata

import pytest

from dfpo_jax.tasks import Item
from dfpo_jax.tasks.judges import BUILT_IN
from dfpo_jax.tasks.verifiers import Verifier, VerifierConfig

ANSWERS = {
    "exact": ["18", "blue whale", "A"],
    "normalised": ["-18", "blue whale", "A", "1,234.5", "x^2-1", "-"],
    "number": ["-18", "1,234.5", "3/4", "$7", "50%"],
    "choice": ["A", "C", "I"],
    "math_verify": ["-18", r"\frac{3}{4}", "x^2-1", "[2,5)", r"\text{even}"],
}
RESPONSES = ["The answer is @.", r"So $\boxed{@}$.", "#### @", "<answer>@</answer>", "@"]
PIECES = [
    "\\boxed{", "}", "{", "$", "####", "<answer>", "</answer>", "\\frac", "^", "-", "\u2212", "or",
    "not", "(", ")", ",", ".", "1", "8", "/", "e9", "%", "\n", " ", "\\", "½", "\u0663", "\ud800",
    "\x00", "inf", "nan", "9" * 50, "x", "A", "C", "option", "is", "=", "10^", "**", "_", "\\text{",
]  # fmt: skip


def texts(generator, answers, count):
    """Half random bytes and pieces, half right answers with up to three changes."""
    for _ in range(count):
        answer = generator.choice(answers)
        if generator.random() < 0.25:
            size = generator.randrange(60)
            yield answer, generator.randbytes(size).decode("utf-8", "surrogateescape")
        elif generator.random() < 0.33:
            yield answer, "".join(generator.choices(PIECES, k=generator.randrange(25)))
        else:
            text = list(generator.choice(RESPONSES).replace("@", answer))
            for _ in range(generator.randrange(1, 4)):
                place = generator.randrange(len(text) + 1)
                text[place : place + generator.randrange(3)] = generator.choice(
                    [*PIECES, *string.printable]
                )
            yield answer, "".join(text)


def holds(response, answer):
    """Whether the signs of an answer occur in a response in order, whatever stands between them."""
    plain = "".join(
        str(unicodedata.decimal(c, c)) for c in unicodedata.normalize("NFKC", response)
    ).casefold()
    signs = [re.escape(c) for c in re.sub(r"[\W_]|frac|text", "", answer.casefold())]
    return re.search(".*?".join(signs), plain, re.DOTALL) is not None


def fuzz(name, extract, count, seed=0):
    generator = random.Random(seed)
    tried = list(texts(generator, ANSWERS[name], count))
    verifier = Verifier(VerifierConfig(name, extract, low=-1.0, timeout=5.0), "fuzz")
    begun = time.monotonic()
    items = [Item("?", answer, index=i) for i, (answer, _) in enumerate(tried)]
    verdicts = verifier.judge(items, [response for _, response in tried])
    seconds = time.monotonic() - begun
    earned = [
        pair
        for pair, v in zip(tried, verdicts, strict=True)
        if v.reward > -1.0 and v.status == "ok"
    ]
    by_accident = [(a, r) for a, r in earned if not holds(r, a) and not written_otherwise(r, a)]
    print(f"{name}, {extract}: {count} texts, {seconds:.1f} s, {len(earned)} earned a reward")
    assert by_accident == []
    return verifier, len(earned)


def written_otherwise(response, answer):
    """Other ways to write the same value, which `holds` does not know."""
    digits = re.sub(r"\D", "", unicodedata.normalize("NFKC", response))
    if answer == "x^2-1":  # to math-verify, x and X are one
        return "xx-1" in response.casefold()
    return answer in (r"\frac{3}{4}", "3/4") and ("75" in digits or "34" in digits)


@pytest.mark.parametrize("extract", ["none", "hashes,boxed,last_number", "tags,none"])
@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "math_verify"])
def test_random_texts(name, extract):
    verifier, earned = fuzz(name, extract, 600)
    assert (verifier.errors, verifier.timeouts) == (0, 0) and earned > 0


@pytest.mark.slow
@pytest.mark.parametrize("extract", ["boxed", "none"])
def test_random_texts_of_mathematics(extract):
    pytest.importorskip("math_verify")
    verifier, earned = fuzz("math_verify", extract, 1000)
    assert verifier.errors + verifier.timeouts < 10 and earned > 0
