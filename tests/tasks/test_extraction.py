"""Finding the answer in a response: closed forms."""

import pytest

from dfpo_jax.tasks.extraction import extractor


@pytest.mark.parametrize(
    ("methods", "text", "expected"),
    [
        ("none", " 5 \n", "5"),
        ("boxed", r"\boxed{1} then \boxed{\frac{1}{2}} done", r"\frac{1}{2}"),
        ("boxed", r"\boxed{1} and \boxed{2", "1"),
        ("boxed", "5", None),
        ("last_number", "from 3 to 1,234.5, I say -7.", "-7"),
        ("last_number", "3/4 of $1,200.", "$1,200"),
        ("last_number", "none", None),
        ("hashes", "2+3\n#### 5\nbye", "5"),
        ("hashes", "#### 1 #### 2", "2"),
        ("hashes", "####", None),
        ("hashes", "5", None),
        ("tags", "<answer>1</answer> <answer>\n2</answer>", "2"),
        ("tags", "<answer>1", None),
        ("tags", "<Answer>3</Answer> <answer></answer>", "3"),
        ("boxed", r"\fbox{42}", "42"),
        ("boxed", r"\boxed 42.", "42"),
        ("boxed", r"So $\boxed{42}$. I put it in \boxed{} as asked.", "42"),
        ("boxed", r"$\boxed{\{1,2\}}$", r"\{1,2\}"),
        ("boxed", r"\boxed{x \} y}", r"x \} y"),
        ("boxed", "\\boxed\n{5}", "5"),
        ("boxed", r"\boxed{\boxed{5}}", "5"),
        ("boxed", r"\boxed{ } and {5}", None),
        ("hashes", "#### 18\n####", "18"),
        ("hashes", "####\n18", "18"),
        ("tags,boxed,last_number", r"\boxed{4} 5", "4"),
        ("tags,boxed,last_number", "4 5", "5"),
    ],
)
def test_extraction(methods, text, expected):
    assert extractor(methods)(text) == expected


def test_extraction_by_pattern_and_behind_a_marker():
    assert extractor("regex", r"is (\d+)")("it is 4, it is 5") == "5"
    assert extractor("regex", r"\d+")("it is 4") == "4"
    assert extractor("last_number", after="</think>")("7 </think> 8, no, 9") == "9"
    assert extractor("last_number", after="</think>")("still thinking about 7") is None
