"""Verifiers and extraction: closed forms, failures that are counted, processes that are killed."""

import logging
import os
import resource
import sys
import textwrap
import time

import pytest

from dfpo_jax.tasks import Item, ReasoningGymTask
from dfpo_jax.tasks.judges import check_reference
from dfpo_jax.tasks.verifier_pool import Pool, shared_pool
from dfpo_jax.tasks.verifiers import Verifier, VerifierConfig


def item(answer, index=0, payload=None):
    return Item("?", answer, payload, index)


def reward(name, response, answer, **settings):
    verifier = Verifier(VerifierConfig(name, **settings), "test")
    (verdict,) = verifier.judge([item(answer)], [response])
    assert verdict.status == "ok" and (verifier.errors, verifier.timeouts) == (0, 0)
    return verdict.reward


@pytest.mark.parametrize(
    ("name", "response", "answer", "expected"),
    [
        ("exact", " 12\n", "12", 1.0),
        ("exact", "12.0", "12", 0.0),
        ("exact", "Twelve", "twelve", 0.0),
        ("normalised", "The  Eiffel-Tower!", "eiffel tower", 0.0),
        ("normalised", "The  Eiffel Tower!", "an eiffel tower", 1.0),
        ("normalised", "another", "other", 0.0),
        ("number", "$1,234.50", "1234.5", 1.0),
        ("number", "3/4", "0.75", 1.0),
        ("number", "12%", "12", 1.0),
        ("number", "-12", "12", 0.0),
        ("number", "12.1", "12", 0.0),
        ("number", "1e999999999", "12", 0.0),
        ("number", "no idea", "12", 0.0),
        ("number", "1/0", "12", 0.0),
        ("choice", "(B)", "B", 1.0),
        ("choice", "B. because", "b".upper(), 1.0),
        ("choice", "The answer is **C**.", "C", 1.0),
        ("choice", "Either (A) or (D)", "D", 0.0),  # says two
        ("choice", "Not (A), hence (D)", "D", 1.0),
        ("choice", "A dog", "A", 0.0),
        ("choice", "no", "A", 0.0),
    ],
)
def test_verdicts(name, response, answer, expected):
    assert reward(name, response, answer) == expected


def test_tolerance_is_relative_above_one_and_absolute_below():
    for answer, near, far in (("200", "202", "202.1"), ("0.5", "0.51", "0.5101")):
        assert reward("number", near, answer, tolerance=0.01) == 1.0
        assert reward("number", far, answer, tolerance=0.01) == 0.0


def test_a_right_answer_earns_high_and_a_wrong_one_low():
    cases = {"exact": ("x", "x", "y"), "number": ("5", "5.0", "6"), "choice": ("B", "(B)", "C")}
    for name, (answer, right, wrong) in cases.items():
        for response, earned in ((right, 3.0), (wrong, -1.0), ("", -1.0)):
            assert reward(name, response, answer, low=-1.0, high=3.0) == earned


def test_whole_numbers_are_counted_exactly_and_others_rounded():
    assert reward("number", "109200001", "109,200,000") == 0.0
    assert reward("number", "4.666667", "14/3") == 1.0
    assert reward("number", "109200001", "109200000", tolerance=1e-5) == 1.0


def test_a_response_without_an_answer_earns_low():
    assert reward("number", "7 is it", "7", extract="hashes", low=-1.0) == -1.0


@pytest.mark.parametrize(
    ("name", "response", "answer", "expected"),
    [
        ("number", "#### Final answer\n18", "18", 1.0),
        ("number", "#### Step 3: add\nThe answer is 18.", "18", 1.0),
        ("number", r"#### see the box \boxed{18}", "18", 1.0),
        ("number", r"\boxed{x} is 18.", "18", 1.0),
        ("number", r"#### 18 or 19 \boxed{18}", "18", 0.0),  # an answer, and a wrong one
        ("number", "3 of them.\n#### 3-5", "3", 0.0),
        ("choice", r"#### done. \boxed{B}", "B", 1.0),
        ("exact", r"\boxed{} 18", "18", 1.0),
    ],
)
def test_a_method_that_finds_nothing_usable_yields_to_the_next(name, response, answer, expected):
    assert reward(name, response, answer, extract="hashes,boxed,last_number") == expected


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("number", "3 or 5", "'3 or 5' is not a number"),
        ("choice", "A dog", "'A dog' names no letter"),
        ("exact", "  ", "is empty"),
        ("math_verify", "", "is empty"),
    ],
)
def test_references_that_cannot_be_judged_are_named(name, answer, message):
    with pytest.raises(ValueError, match=message):
        check_reference(name, answer)
    check_reference("mine:judge", answer)
    for name, answer in (("number", "$1,234"), ("choice", "(b)"), ("normalised", "A")):
        check_reference(name, answer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "magic"}, "name is 'magic'; it must be one of exact, "),
        ({"extract": "box"}, "extract is 'box'"),
        ({"extract": "regex"}, "regex needs a pattern"),
        ({"pattern": "x"}, "regex needs a pattern"),
        ({"extract": "regex", "pattern": "("}, "not a regular expression"),
        ({"low": 1.0}, "low must be below high"),
        ({"on_failure": 2.0}, "on_failure is 2.0"),
        ({"timeout": 0.0}, "timeout is 0.0"),
        ({"workers": 0}, "workers is 0"),
        ({"tolerance": -1.0}, "tolerance is -1.0"),
        ({"most_failures": 1.5}, "most_failures is 1.5; it must be from 0 to 1"),
        ({"most_failures": -0.1}, "most_failures is -0.1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        VerifierConfig(**settings)


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "odd_verifiers.py").write_text(
        textwrap.dedent("""
            import os, subprocess, time

            if os.path.exists(os.environ.get("ODD_VERIFIERS_REFUSE", "")):
                raise RuntimeError("not today")

            def two(response, answer):
                return 1.0

            async def later(response, answer, payload):
                return 1.0

            def score(response, answer, payload):
                return {"score": 1.0}

            def text(response, answer, payload):
                return "1.0"

            def large(response, answer, payload):
                return 7

            def some(response, answer, payload):
                return float(payload["row"] == answer == response)

            number = 5

            def judge(response, answer, payload):
                print("noise on standard output")
                if response == "hang":
                    while True:
                        pass
                if response == "sleep":
                    time.sleep(600)
                if response == "die":
                    os._exit(7)
                if response == "memory":
                    bytearray(2**36)
                if response == "pid":
                    return float(os.getpid())
                if response == "exit":
                    exit()
                if response == "shell":
                    subprocess.run(["sh", "-c", f"sleep 1; touch {payload}"])
                if response == "dictionary":
                    return {"score": 1.0}
                return {"five": 5.0}.get(response) or float(response) + payload["plus"]
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    shared_pool.cache_clear()
    yield "odd_verifiers:judge"
    shared_pool.cache_clear()


def test_a_function_of_the_user_runs_in_a_process_and_its_failures_are_counted(module, caplog):
    config = VerifierConfig(module, high=2.0, on_failure=0.25, timeout=0.5)
    verifier = Verifier(config, "odd")
    cases = [
        ("0.5", 1.5, "ok"),
        ("hang", 0.25, "timeout"),
        ("sleep", 0.25, "timeout"),
        ("words", 0.25, "error"),
        ("dictionary", 0.25, "error"),
        ("die", 0.25, "error"),
        ("exit", 0.25, "error"),
        ("memory", 0.25, "error"),
        ("five", 0.25, "error"),  # out of range
        ("1", 2.0, "ok"),
    ]
    items = [item("", index, {"plus": 1.0}) for index in range(len(cases))]
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING):
        verdicts = verifier.judge(items, [case[0] for case in cases])
    assert [(v.reward, v.status) for v in verdicts] == [case[1:] for case in cases]
    assert (verifier.errors, verifier.timeouts) == (6, 2)
    assert time.monotonic() - begun < 30
    assert len(caplog.records) == 8
    assert "verifier of odd failed on response 'words'" in caplog.text
    assert "returned a dict; it must return a number" in verdicts[4].why
    for said in ("no verdict within 0.5 s", "code 7", "MemoryError", "reward 5.0 is outside"):
        assert said in caplog.text


def test_a_process_that_is_killed_is_gone(module):
    pool = Pool(module, 1)
    ((_, first),) = pool.run([("pid", "", None)], 5.0)
    assert pool.run([("sleep", "", None)], 0.2)[0][0] == "timeout"
    with pytest.raises(ProcessLookupError):
        os.kill(int(first), 0)
    ((status, second),) = pool.run([("pid", "", None)], 5.0)
    assert status == "ok" and second != first


def test_what_a_verifier_started_is_killed_with_it(module, tmp_path):
    pool = Pool(module, 1)
    assert pool.run([("shell", "", tmp_path / "survived")], 0.5)[0][0] == "timeout"
    time.sleep(1.5)
    assert not (tmp_path / "survived").exists()


def test_a_process_that_cannot_be_started_again_is_an_error_and_tried_later(
    module, tmp_path, monkeypatch
):
    refuse, requests = tmp_path / "refuse", [("die", "", None), *[("pid", "", None)] * 40]
    monkeypatch.setenv("ODD_VERIFIERS_REFUSE", str(refuse))
    one, two = Pool(module, 1), Pool(module, 2)
    for pool in (one, two):
        assert [status for status, _ in pool.run(requests[1:], 5.0)] == ["ok"] * 40
    refuse.touch()
    for pool, statuses in ((one, ["error"] * 41), (two, ["error"] + ["ok"] * 40)):
        results = pool.run(requests, 5.0)
        assert [status for status, _ in results] == statuses
        assert "code 7" in results[0][1]
    assert "cannot be loaded: RuntimeError: not today" in one.run(requests, 5.0)[-1][1]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(tmp_path / "no_python"))
        assert "cannot be started: [Errno 2]" in one.run(requests, 5.0)[0][1]
    refuse.unlink()
    assert [status for status, _ in one.run(requests[1:], 5.0)] == ["ok"] * 40


def test_a_process_with_many_open_files_can_have_verifiers(module):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert Pool(module, 1).run([("pid", "", None)], 5.0)[0][0] == "ok"
    finally:
        for file in opened:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_requests_are_shared_out_and_answered_in_order(module):
    pool = Pool(module, 3)
    requests = [(str(i), "", {"plus": 0.5}) for i in range(200)]
    assert pool.run(requests, 5.0) == [("ok", i + 0.5) for i in range(200)]
    assert pool.run([], 5.0) == []


@pytest.mark.parametrize("name", ["no_such_module:f", "odd_verifiers:absent"])
def test_a_function_that_cannot_be_imported_is_refused_at_once(module, name):
    with pytest.raises(ValueError, match=f"verifier '{name}' cannot be loaded"):
        Verifier(VerifierConfig(name), "odd")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two", r"it takes \(response, answer\), and is called with \(response, answer, payload\)"),
        ("later", "it is an async function; it must return a number, not a coroutine"),
        ("number", "5 is not a function"),
    ],
)
def test_a_function_that_cannot_give_a_number_is_refused_when_it_is_loaded(module, name, message):
    with pytest.raises(ValueError, match=message):
        Verifier(VerifierConfig(f"odd_verifiers:{name}"), "odd")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("score", "returned a dict; it must return a number; it must be a function"),
        ("text", "returned the text '1.0'"),
        ("large", r"reward 7.0 is outside \[0.0, 1.0\]"),
    ],
)
def test_a_function_that_fails_on_everything_is_refused_before_training(module, name, message):
    verifier = Verifier(VerifierConfig(f"odd_verifiers:{name}"), "odd")
    with pytest.raises(ValueError, match=message) as refused:
        verifier.trial([item("5", 0, {"row": "5"})])
    assert "fails on every one of 3 trial calls" in str(refused.value)
    assert (verifier.errors, verifier.timeouts) == (0, 0)


def test_a_function_that_works_on_something_passes_its_trial(module):
    Verifier(VerifierConfig(module, high=9.0), "odd").trial([item("x", 0, {"plus": 1.0})])
    Verifier(VerifierConfig("odd_verifiers:some"), "odd").trial([item("5", 0, {"row": "5"})])
    Verifier(VerifierConfig("number"), "odd").trial([item("x"), item("5")])
    with pytest.raises(ValueError, match="'x' is not a number; its reference answers may be"):
        Verifier(VerifierConfig("number"), "odd").trial([item("x"), item("y"), item("5")])


def test_mathematics():
    pytest.importorskip("math_verify")
    verifier = Verifier(VerifierConfig("math_verify", extract="boxed", timeout=20.0), "math")
    cases = [
        (r"so \boxed{0.5}", r"\frac{1}{2}", 1.0, "ok"),
        (r"so \boxed{x+1}", "1+x", 1.0, "ok"),
        (r"so \boxed{(1, 2)}", "$(1,2)$", 1.0, "ok"),
        (r"so \boxed{3}", "4", 0.0, "ok"),
        ("3", "3", 0.0, "ok"),  # not boxed
        (r"\boxed{18.90}", r"\$18.90", 1.0, "ok"),
        (r"\boxed{36.1}", r"\$36", 0.0, "ok"),
        (r"\boxed{32348}", r"\$32,\!348", 1.0, "ok"),
        (r"\boxed{18}", "$18", 1.0, "ok"),
        (r"\boxed{2+3}", "$5$", 1.0, "ok"),
        (r"\boxed{2+3}", r"\(5\)", 1.0, "ok"),
        (r"\boxed{neve}", "even", 0.0, "ok"),
        (r"\boxed{52_{8}}", "52_8", 1.0, "ok"),
        (r"\boxed{52}", "52_8", 1.0, "ok"),
        (r"\boxed{52_7}", "52_8", 0.0, "ok"),
        (r"\boxed{4210_{5}}", "4210", 0.0, "ok"),
        (r"\boxed{(1,234)}", "1234", 0.0, "ok"),
        (r"\boxed{1,234}", "1234", 1.0, "ok"),
        (r"\boxed{42.}", "42", 1.0, "ok"),
    ]
    items = [item(case[1], index) for index, case in enumerate(cases)]
    verdicts = verifier.judge(items, [case[0] for case in cases])
    assert [(v.reward, v.status) for v in verdicts] == [case[2:] for case in cases]


def test_reasoning_gym_takes_an_extraction_and_another_verifier():
    parameters = {"min_terms": 2, "max_terms": 2, "max_digits": 1}
    own = ReasoningGymTask("chain_sum", parameters, verifier=VerifierConfig(extract="hashes"))
    first = own.items(1)[0]
    assert own.score(first, f"well #### {first.answer}") == 1.0
    assert own.score(first, first.answer) == 0.0
    settings = VerifierConfig("number", extract="last_number", low=-1.0)
    other = ReasoningGymTask("chain_sum", parameters, verifier=settings)
    assert other.reward_range == (-1.0, 1.0)
    assert other.score(first, f"1 2 3 {first.answer}.") == 1.0
    assert other.score(first, "none") == -1.0
    binary = ReasoningGymTask(
        "chain_sum", parameters, verifier=settings, partial_credit=False, solved_at=0.5
    )
    assert [binary.score(first, x) for x in (first.answer, "99999")] == [1.0, -1.0]


def test_items_that_are_not_accepted_are_passed_over():
    task = ReasoningGymTask(
        "spell_backward",
        {"min_word_len": 3, "max_word_len": 5},
        accepts=lambda item: len(item.answer) == 4,
    )
    assert {len(i.answer) for i in task.batch(0, 20) + task.items(20)} == {4}


@pytest.mark.parametrize(
    ("response", "reward"), [("\\boxed{b}", 1.0), ("b", 0.0), ("so b", 0.0), ("B", 1.0)]
)
def test_a_box_declares_a_small_letter_and_a_whole_response_does_not(response, reward):
    verifier = Verifier(VerifierConfig("choice", "boxed,none"), "t")
    (verdict,) = verifier.judge([Item("?", "B", {"row": {}}, 0)], [response])
    assert (verdict.reward, verdict.status) == (reward, "ok")
