r"""Dresses: texts that models write around an answer, by the method that extracts it.

In a template, @ stands for the answer. A dress is only used where it does not change the answer:
one that adds a word suits numbers, and one with a box suits methods that look for boxes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from _verifiers.writings import Reference, reference

_BOXED = (
    r"\boxed{@}", r"So $\boxed{@}$.", r"$$\boxed{@}$$", r"\[\boxed{@}\]", r"\(\boxed{@}\)",
    r"The answer is $\boxed{@}$.", r"\fbox{@}", r"\boxed{ @ }", r"**\boxed{@}**", r"\boxed {@}",
    "\\boxed\n{@}", r"\boxed{$@$}", r"\boxed{\(@\)}", r"\boxed{\boxed{@}}",
    r"\boxed{977} was wrong. \boxed{@}", r"\boxed{@}. I put it in \boxed{} as asked.",
    "First, 2 + 3 = 5.\nThen \\boxed{@}", "Final answer: \\boxed{@}\n", r"\boxed{\displaystyle @}",
    "# Answer\n\\boxed{@}\n\nThis is the final answer.", r"\boxed{@} and not \boxed{6",
)  # fmt: skip
_HASHES = (
    "#### @", "####@", "so\n#### @\n", "#### @.", "#### **@**", "**#### @**", "#### `@`",
    "#### $@$", "#### Answer: @", "#### The answer is @", "####\n@", "2 + 3 = 5\n\n#### @",
    r"#### \boxed{@}", "### Steps\n1. Add.\n2. Divide.\n\n#### @", "#### 977\nNo.\n#### @",
    "#### x = @", "#### Final answer\n@", "#### @\n####", "#### = @", "#### __@__",
)  # fmt: skip
_PROSE = (
    "@", "The answer is @.", "So the answer is **@**.", "We get x = @", "Therefore: @", "It is @!",
    "5 + 4 is 9, and 9 - 2 is 7; the answer is @", "977 was wrong.\n\nAnswer: @", "= @", "<b>@</b>",
    "The total is @ (not 977).", "`@`", "Final answer: @.", "Answer:\n\n@\n", "Step 1 gives 6. @",
    r"$@$", r"\(@\)", "Hence @, as we saw in step 3.", "In 2 steps: @.", "**Answer:** @",
)  # fmt: skip
_TAGGED = (
    "<answer>@</answer>", "<answer> @ </answer>", "<answer>\n@\n</answer>", "<Answer>@</Answer>",
    "So <answer>@</answer>.", "<answer>**@**</answer>", "<answer>The answer is @</answer>",
    "<answer>Answer: @</answer>", "<answer>x</answer> or rather <answer>@</answer>",
    "<answer>@.</answer>", "<answer>`@`</answer>", "<answer>$@$</answer>",
    "I write <answer></answer> later. <answer>@</answer>", "<answer>@</answer> <answer></answer>",
    "<think>It is 977.</think><answer>@</answer>", "<answer>Final answer: @</answer>",
    "<answer>So the answer is @.</answer>", "<answer>__@__</answer>", "<answer>*@*</answer>",
    "<answer>@\n</answer>\n\nDone.",
)  # fmt: skip
_PLAIN = (
    "@", " @ ", "@\n", "**@**", "`@`", "The answer is @", "Answer: @", "@.", "__@__", "*@*", "$@$",
    "\n\n@\n\n", "So the answer is @.", "Final answer: @", "The final answer is: @", "<b>@</b>",
    "Therefore, the answer is @", "My answer: @", "Answer:\n@", "**Answer:** @",
)  # fmt: skip
_CHOSEN = (
    "@", "Answer: @", "The answer is @", "the answer is **@**", r"\boxed{@}", "Answer: $@$",
    "Final answer: @", "My answer: I would choose @", "Answer: @\n\nOption E fails.",
    "**Answer: @**", "The correct option is @", "E is wrong. D is wrong. Answer: @",
    "Answer: E\nNo.\nAnswer: @",
    "The answer would be @", "A) 5\nB) 6\nC) 7\nD) 8\n\nAnswer: @", "Thus the answer is option @",
    "<answer>@</answer>", "Answer: @\nChoice A forgets friction.", "### Answer\n@", "I choose @",
    "The answer I found is @", "Let us see. I think that the answer is @",
)  # fmt: skip
_AS_IT_IS = ("@", " @", "@ ", "@\n", "\n@", "\t@\n", "  @  ", "@\r\n")

_NUMERIC = ("integer", "negative", "thousands", "decimal", "fraction", "percent", "currency")
_KINDS = {
    "number": (*_NUMERIC, "unit"),
    "choice": ("letter",),
    "normalised": (*_NUMERIC, "words", "expression", "interval", "set"),
    "math_verify": (*_NUMERIC, "words", "expression", "interval", "set"),
}
_PLACES = {"boxed": _BOXED, "hashes": _HASHES, "tags": _TAGGED, "last_number": _PROSE}


class Pair(NamedTuple):
    """A response to a reference, and whether it was made to be right."""

    reference: Reference
    dress: str
    response: str
    right: bool


def dresses(name: str, extract: str) -> tuple[str, ...]:
    """The templates that suit a verifier and its methods of extraction."""
    if name == "choice":
        return _CHOSEN
    plain = _PLAIN if name in ("normalised", "number") else _AS_IT_IS
    found = [_PLACES.get(method.strip(), plain) for method in extract.split(",")]
    return tuple(dict.fromkeys(template for templates in found for template in templates))


def pairs(name: str, extract: str, answers: Sequence[str]) -> Iterator[Pair]:
    """Right and wrong responses with every dress, for every reference.

    Args:
      name: a built-in verifier. For another one, only the texts of the references count as right.
      extract: its methods of extraction.
      answers: references; kinds that the verifier does not read are left out.
    """
    for answer in answers:
        made = reference(answer)
        if made.kind not in _KINDS.get(name, (made.kind,)):
            continue
        for template in dresses(name, extract):
            right = made.right if name in _KINDS else (answer,)
            for text in right:
                if _fits(template, text, made.kind):
                    yield Pair(made, template, template.replace("@", text), True)
            for text in made.wrong:
                if _fits(template, text, made.kind) and (name in _KINDS or text):
                    yield Pair(made, template, template.replace("@", text), False)


def _fits(template: str, text: str, kind: str) -> bool:
    """Whether a dress does not change the meaning of a text."""
    if not text:  # a number or letter of the template would become the answer
        return not any(character.isalnum() for character in template.replace("boxed", ""))
    in_math = "$@$" in template or r"\(@\)" in template
    if "$" in text and in_math:
        return False
    if kind == "words":
        return not in_math and template not in ("@.",)
    return not (kind == "letter" and text.startswith("\\") and "$" in template)
