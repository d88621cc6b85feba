"""Letters of multiple choice, and the right choice of a row."""

import time

import pytest

from dfpo_jax.tasks.choices import letter

# fmt: off
LETTERS = [
    ("Answer: (B)\n\nExplanation: option A fails.", "B"),
    ("Answer: A\nOption B forgets the friction.", "A"),
    ("The answer is **B**: option (A) is not possible", "B"),
    ("Choice A is wrong. Choice C is wrong. So B.", "B"),
    ("Answer: A\nAfter checking, I correct this.\nAnswer: B", "B"),
    ("Answer: D, not B", "D"),
    ("The answer is B. Beware: A is what most people pick.", "B"),
    ("\\boxed{B}", "B"),
    ("Final answer: \\boxed{C}", "C"),
    ("Answer: \\text{C}", "C"),
    ("My answer: I would choose (B)", "B"),
    ("The answer I found is (C)", "C"),
    ("Answer: b", "B"),
    ("The answer would be C", "C"),
    ("**Answer: C**", "C"),
    ("Answer: $C$", "C"),
    ("ANSWER: None of the above", None),
    ("Answer: AB", None),
    ("The answer is C since I added both.", "C"),
    ("B", "B"),
    ("(B)", "B"),
    ("B.", "B"),
    ("B. because", "B"),
    ("B) 42", "B"),
    ("B: 42", "B"),
    ("**B**", "B"),
    ("**(B)** 42", "B"),
    ("$B$", "B"),
    ("$\\boxed{\\text{B}}$", "B"),
    ("\\boxed{\\text{(B) 42}}", "B"),
    ("\\boxed{b}", "B"),
    ("(b)", "B"),
    ("Ｂ", "B"),
    ("b", None),
    ("Big", None),
    ("apple", None),
    ("", None),
    ("no", None),
    ("A dog", None),
    ("The answer is a dog", None),
    ("The answer is A dog", None),
    ("The answer is A because it fits", "A"),
    ("The answer is A.", "A"),
    ("The answer is not A", None),
    ("The answer is not B but D", "D"),
    ("The answer cannot be A", None),
    ("The answer isn't A, it is C", "C"),
    ("Answer: A or B", None),
    ("Answer: A and B", None),
    ("Answer: A, B", None),
    ("Answer: A/B", None),
    ("Either (A) or (D)", None),
    ("Between (A) and (D)", None),
    ("The correct option is B", "B"),
    ("The correct choice is (C).", "C"),
    ("I choose option B", "B"),
    ("I choose B.", "B"),
    ("Option B is correct", "B"),
    ("B is the correct answer", "B"),
    ("Therefore, B is correct. A is wrong.", "B"),
    ("So the answer is B.", "B"),
    ("Therefore the answer is (B) 42.", "B"),
    ("A. 5\nB. 6\nC. 7\nAnswer: C", "C"),
    ("A) 5\nB) 6\nC) 7\nI choose C", "C"),
    ("A. 5 is wrong.\nB. 6 fits.", None),
    ("(A) is wrong and (C) is wrong, so (B).", "B"),
    ("It is (B). (A) is wrong and (C) is wrong.", "B"),
    ("<answer>B</answer>", "B"),
    ("<answer>B</answer> A is wrong", "B"),
    ("Answer B", "B"),
    ("Answer (B)", "B"),
    ("Answer - B", "B"),
    ("Answer A is wrong. Answer: C", "C"),
    ("I think the answer is C", "C"),
    ("Thus, option D.", "D"),
    ("The answer to question 3 is B", "B"),
    ("The best answer, given A and C are false, is B", "B"),
    ("Answer: B\nA: wrong, C: wrong", "B"),
    ("answer: (b)", "B"),
    ("The answer is (b) because", "B"),
    ("Answer: I", "I"),
    ("Answer: I think it is C", "C"),
    ("The final answer is: **D**", "D"),
    ("Answer:\n\nC", "C"),
    ("### Answer\n**C**", "C"),
    ("The answer is option C", "C"),
    ("The answer is: C) 42", "C"),
    ("Answer: C) 42 apples and A", "C"),
    ("correct answer: E", "E"),
    ("B or C", None),
    ("B and C", None),
    ("B, C", None),
    ("A and not B", None),
    ("None", None),
    ("The answer is probably C, but A is also possible", "C"),
    ("It must be A. So A", "A"),
    ("Answer is B, as A fails", "B"),
    ("The right answer here is clearly D.", "D"),
    ("Hence, the answer is A, since B is false", "A"),
    ("Answer: **A**, because", "A"),
    ("The answer is C, and D is wrong", "C"),
    ("My final choice is D", "D"),
    ("I'd go with C", "C"),
    ('The answer is "C"', "C"),
    ("The answer is 'C'.", "C"),
    ("Answer → C", "C"),
    ("The answer is A and B.", None),
    ("Answer: both A and B", None),
    ("Answer: A & B", None),
    ("A is correct", "A"),
    ("The answer must be (A), (B) being impossible", "A"),
    ("**Final Answer:** (C) Paris", "C"),
    ("Answer: C (Paris)", "C"),
    ("Answer: Paris", None),
    ("Answer: Carbon", None),
    ("Option (C) is right", "C"),
]
# fmt: on


def test_the_letter_that_is_declared():
    assert {text: letter(text) for text, _ in LETTERS} == dict(LETTERS)


def test_what_is_known_to_be_an_answer_may_be_a_small_letter():
    for text in ("b", "b.", "(b)", "\\text{b}", "**b**", "b) 42"[:2]):
        assert letter(text, declared=True) == "B"
    for text in ("", "bee", "a dog", "7"):
        assert letter(text, declared=True) is None


@pytest.mark.parametrize(
    "piece",
    ["answer is ", "answer", "answer: I ", "(A)", "(", "A. ", " ", "so ", "is ", "choose I ", "\n",
     ":", "'", "\\boxed{", "not ", "A or "],
)  # fmt: skip
def test_no_text_takes_more_than_linear_time(piece):
    for text in (piece * (40_000 // len(piece)) + "B", "A" + piece * (40_000 // len(piece)) + "x"):
        begun = time.process_time()
        letter(text)
        assert time.process_time() - begun < 5.0
