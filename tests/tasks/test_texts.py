"""Texts compared by SQuAD's rule where it keeps their content, and otherwise by more."""

import pytest

from dfpo_jax.tasks.texts import exact, normalised


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        # References that the rule would empty.
        ("A", ["A", "A.", "a", " **A** "], ["", "the", "?", "B", "an", "A B"]),
        ("the", ["the", "The."], ["", "a", "-"]),
        ("-", ["-"], ["", "+", "--"]),
        ("?", ["?"], ["", "!", "the"]),
        ("B", ["B", "b", "(B)"], ["", "C"]),
        # Bare numbers.
        ("5", ["5", "5.0", "+5", "5 dollars", "The answer is 5."], ["-5", "15", "", "five", "5x"]),
        ("-5", ["-5", "\u22125"], ["5", "–", "- five"]),
        ("3.5", ["3.5", "7/2", "$3.50"], ["35", "3", "5"]),
        ("1,234", ["1234", "1 234", "1,234.0"], ["1.234", "1235", "1,2345"]),
        ("1/2", ["1/2", "0.5", "\\frac{1}{2}"], ["12", "1", "2"]),
        ("50%", ["50", "50%"], ["0.5"]),
        # Numbers in words.
        ("5 km", ["5 km", "5km", "5.0 km"], ["-5 km", "5 miles", "5", "50 km"]),
        ("1,000 people", ["1000 people", "the 1,000 people"], ["1001 people", "people"]),
        ("room 3:30", ["Room 3:30"], ["room 330"]),
        # Mathematics.
        ("x^2", ["x^2", "x^{2}", "$x^2$", "X ^ 2"], ["x2", "x^3"]),
        ("p - q", ["p-q", "p \u2212 q"], ["p + q", "pq"]),
        ("f(x)=x-1", ["f(x) = x - 1"], ["f(x)=x+1", "f(x)=x1"]),
        ("[2,5)", ["[2, 5)"], ["(2,5)", "2,5"]),
        ("1,2,3", ["1, 2, 3"], ["123", "1,2"]),
        ("C++", ["c++", "C++."], ["C", "C+"]),
        ("C#", ["C#"], ["C"]),
        # Words.
        (
            "The Beatles",
            ["beatles", "the Beatles!", "“The Beatles”", "<b>Beatles</b>"],
            ["beetles"],
        ),
        ("Café", ["cafe\u0301", "CAFÉ"], ["cafe"]),
        ("O'Neil", ["O’Neil", "ONeil"], ["Neil"]),
        ("the cat", ["cat", "a cat", "The cat."], ["the", "cats"]),
        # Articles that are content.
        ("Hepatitis A", ["hepatitis A."], ["hepatitis", "hepatitis an", "hepatitis B"]),
        ("Serie A", ["the Serie A"], ["Serie", "Serie the"]),
        ("vitamin a", ["Vitamin A"], ["vitamin", "vitamin the"]),
        ("A and B", ["A and B", "a and b."], ["and B", "B"]),
        ("A vs B", ["A vs. B"], ["vs B", "B"]),
        ("A, B, C", ["A, B, C", "a, b, c."], ["B, C", "C"]),
        ("Room 5A", ["room 5A", "the room 5 A"], ["Room 5", "Room 5B"]),
        ("The The", ["The The", "the the"], ["The", "", "A"]),
        ("1969, the year", ["1969, year"], ["1969"]),
        # Signs that are content.
        ("B", ["B."], ["B-", "-B"]),
        ("B-", ["B-", "b\u2212"], ["B", "B+"]),
        ("Cl-", ["Cl-"], ["Cl"]),
        ("Cl", ["Cl"], ["Cl-"]),
        ("type O", ["type O"], ["type O-", "type O+"]),
        ("A", ["A"], ["A-", "-A", "A+"]),
        ("x", ["x", "the x"], ["-x", "x!", "!x", "x'"]),
        ("-x", ["-x", "\u2212x"], ["x"]),
        ("2x", ["2x"], ["-2x"]),
        ("-5 km", ["-5 km", "-5.0 km"], ["5 km"]),
        ("pi", ["pi"], ["-pi"]),
        ("sin x", ["sin x"], ["-sin x"]),
        ("5", ["5", "The answer is 5!"], ["5!", "$5!$"]),
        ("5!", ["5!"], ["5", "120"]),
        ("yes", ["Yes!", "- yes"], ["no!"]),
        ("Ada Lovelace", ["The answer is Ada Lovelace.", "\\text{Ada Lovelace}"], ["Ada", ""]),
    ],
)
def test_what_equals_a_reference(answer, right, wrong):
    assert {text: normalised(text, answer) for text in right} == dict.fromkeys(right, 1.0)
    assert {text: normalised(text, answer) for text in wrong} == dict.fromkeys(wrong, 0.0)


@pytest.mark.parametrize("answer", ["", " ", "\n"])
def test_nothing_equals_an_empty_reference(answer):
    for response in ("", " ", "the", "x", answer):
        assert normalised(response, answer) == exact(response, answer) == 0.0
