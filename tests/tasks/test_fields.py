"""Values of rows: nested columns, what is refused with its line, prompts that would leak."""

import json

import pytest

from dfpo_jax.tasks import JsonlTask, ReasoningGymTask
from dfpo_jax.tasks.fields import lookup
from dfpo_jax.tasks.multiple_choice import right_choice

VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "1+1?"}],
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"answers": ["no", {"text": 2.0}], "level.x": "odd"},
}


def load(path, text, parameters=None, **options):
    file = path / "rows.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    task = JsonlTask(str(file), parameters or {}, held_out_percent=0, **options)
    return [(item.prompt, item.answer) for item in task.everything()]


def row(question='"q?"', answer='"4"', **more):
    extra = "".join(f', "{name}": {value}' for name, value in more.items())
    return f'{{"question": {question}, "answer": {answer}{extra}}}\n'


def refused(path, text, parameters=None, **options):
    """The message, which is one line and names the row."""
    with pytest.raises(ValueError, match=r"rows\.jsonl, line \d") as error:
        load(path, text, parameters, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reward_model.ground_truth", "2"),
        ("reward_model[ground_truth]", "2"),
        ("prompt.0.content", "1+1?"),
        ("prompt.-1.role", "user"),
        ("extra_info.answers.1.text", 2.0),
        ("extra_info.level.x", "odd"),
    ],
)
def test_a_column_inside_another_is_named_by_its_path(name, value):
    assert lookup("row", VERL, name) == value


def test_a_column_with_dots_in_its_name_comes_first():
    assert lookup("row", {"a.b": 1, "a": {"b": 2}}, "a.b") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("answer", "row has no 'answer'; it has data_source, prompt, reward_model, extra_info"),
        ("reward_model.answer", "'reward_model' of it has style, ground_truth"),
        ("prompt.1.content", "'prompt' of it is a list of 1"),
        ("prompt.content", "'prompt' of it is a list of 1"),
        ("data_source.name", "'data_source' of it is the text 'openai/gsm8k' and contains nothing"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(name, message):
    with pytest.raises(ValueError) as error:
        lookup("row", VERL, name)
    assert message in str(error.value)


def test_rows_in_the_shape_of_verl(tmp_path):
    text = json.dumps(VERL) + "\n"
    columns = {"messages": "prompt", "answer": "reward_model.ground_truth"}
    assert load(tmp_path, text, columns) == [("1+1?", "2")]
    columns = {"answer": "extra_info.answers.1.text"}
    assert load(tmp_path, text, columns, prompt="Q: {prompt.0.content}") == [("Q: 1+1?", "2")]
    assert "is the object {" in refused(
        tmp_path, text, {"messages": "prompt", "answer": "reward_model"}
    )


REFUSED = ["null", "NaN", "Infinity", "-Infinity", "1e999", "true", "[]", '["4"]', '{"text": "4"}']
REFUSED += ['"\\ud800"', '"a\\udc00b"']


@pytest.mark.parametrize("value", REFUSED)
def test_what_is_neither_a_text_nor_a_finite_number_is_refused(tmp_path, value):
    assert "column 'answer'" in refused(tmp_path, row() + row(answer=value))
    assert "line 2: column 'question'" in refused(tmp_path, row() + row(question=value))
    choices = {"choices": ["options"]}
    text = row(options=f'["4", {value}]')
    assert "column 'options'" in refused(tmp_path, text, choices, prompt="{question}{choices}")
    talk = f'{{"messages": [{{"role": "user", "content": {value}}}], "answer": "1"}}\n'
    assert "message" in refused(tmp_path, talk, {"messages": "messages"})
    assert load(tmp_path, row(unused=value)) == [("q?", "4")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("28.0", "28"),
        ("1e22", "10000000000000000000000"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("0.1", "0.1"),
        ('"NaN"', "NaN"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_numbers_and_texts_are_kept(tmp_path, value, text):
    assert load(tmp_path, row(answer=value)) == [("q?", text)]


@pytest.mark.parametrize(
    "text",
    [
        '{"question": "q", "answer": "a", "answer": "b"}\n',
        '{"question": "q", "answer": "a", "more": {"x": 1, "x": 2}}\n',
        "[" * 100_000 + "\n",
        '{"question": "q", "answer": ' + "1" * 5000 + "}\n",
        '[{"question": "q", "answer": "a"}]',
        b'{"question": "caf\xe9", "answer": "2"}\n',
        row().encode("utf-16"),
        "{'question': 'q', 'answer': 'a'}\n",
    ],
    ids=["twice", "twice inside", "deep", "digits", "array", "Latin-1", "UTF-16", "quotes"],
)
def test_lines_that_are_no_sound_object_are_refused(tmp_path, text):
    assert "line 1" in refused(tmp_path, text)


def test_a_pointer_is_no_data(tmp_path):
    with pytest.raises(ValueError, match="rows.jsonl is a git-lfs pointer"):
        load(tmp_path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def test_byte_order_marks_and_line_ends_are_read(tmp_path):
    two, want = row('"1+1?"', '"2"') + row('"2+2?"', '"4"'), [("1+1?", "2"), ("2+2?", "4")]
    for text in ("\ufeff" + two, two.replace("\n", "\r\n"), "\n \n" + two.rstrip()):
        assert load(tmp_path, text) == want
    odd = '{"question": "a\u2028b\u0085c", "answer": "2"}\n'
    assert load(tmp_path, odd) == [("a\u2028b\x85c", "2")]


@pytest.mark.parametrize(
    ("prompt", "columns"),
    [
        ("{question} The final answer is: $\\boxed{answer}$.", {}),
        ("{question} <answer>{answer!s:>4}</answer>", {}),
        ("{question:{answer}}", {}),
        ("{question} {meta.solution}", {"answer": "meta.solution"}),
        ("{question} {meta[solution]}", {"answer": "meta.solution"}),
        ("{question} {right}", {"answer": "", "choices": ["right", "wrong"]}),
    ],
)
def test_a_prompt_that_names_the_answer_is_refused(tmp_path, prompt, columns):
    text = row(answer='"42"', meta='{"solution": "42"}', right='"42"', wrong='"7"')
    assert "the reference answer, into the prompt" in refused(
        tmp_path, text, columns, prompt=prompt
    )


def test_other_braces_are_refused_or_kept(tmp_path):
    assert "write {{}} for braces" in refused(tmp_path, row(), prompt="{question} in \\boxed{}.")
    assert "no 'your answer', which task.prompt" in refused(
        tmp_path, row(), prompt="{question} \\boxed{your answer}"
    )
    assert "does not fit" in refused(tmp_path, row(), prompt="{question} {")
    text = row(question="3.14159", level='["easy"]')
    prompt = "{question:.2f} in \\boxed{{}} or {{answer}}, {level.0}."
    assert load(tmp_path, text, prompt=prompt) == [("3.14 in \\boxed{} or {answer}, easy.", "4")]


def test_a_generated_task_refuses_it_too():
    with pytest.raises(ValueError, match="puts 'answer', the reference answer"):
        ReasoningGymTask("chain_sum", {}, prompt="{question} \\boxed{answer}")


@pytest.mark.parametrize(
    ("choices", "value", "right"),
    [
        (["8", "2", "24", "120"], 2, "24"),
        (["0", "2", "1", "3"], 1, "2"),
        (["1", "2", "3", "4"], 2, "3"),
        (["0", "4", "2", "6"], 1, "4"),
        (["x", "y", "z"], "B", "y"),
        (["x", "y", "z"], "2", "z"),
        (["7", "8"], 8, "8"),
        (["A", "B"], "B", "B"),
        (["2", "24"], "24", "24"),
    ],
)
def test_an_integer_is_an_index_and_a_text_a_text(choices, value, right):
    assert choices[right_choice("row", choices, value, str(value))] == right


@pytest.mark.parametrize(
    ("choices", "value"), [(["1", "2", "3"], "2"), (["B", "A"], "A"), (["1", "0"], "1")]
)
def test_a_text_that_may_mean_two_choices_is_refused(choices, value):
    with pytest.raises(ValueError, match=f"row: answer '{value}' may mean '.' or '.' of"):
        right_choice("row", choices, value, value)


def test_an_integer_among_numbers_is_an_index_or_one_of_them(tmp_path):
    fields = {"choices": ("c",), "answer": "answer"}
    found = load(tmp_path, row(answer="1", c="[0, 1, 2]"), fields, prompt="{choices}")
    assert f"{found[0][1]}) 1" in found[0][0]
    with pytest.raises(ValueError, match="line 1: answer '2' may mean '2' or '24' of"):
        load(tmp_path, row(answer="2", c="[8, 2, 24]"), fields, prompt="{choices}")


def test_empty_cells_are_empty(tmp_path):
    text = "".join(row(f'"{i}"', image=value) for i, value in enumerate(('""', "null", "NaN", "1")))
    assert load(tmp_path, text, {"empty": "image"}) == [("0", "4"), ("1", "4"), ("2", "4")]
