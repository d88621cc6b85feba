"""Verifiers and extraction: closed forms, failures that are counted, processes that are killed."""

import logging
import os
import resource
import sys
import textwrap
import time

import pytest

from dfpo_jax.tasks import Item, ReasoningGymTask
from dfpo_jax.tasks.extraction import extractor
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
        ("choice", "Either (A) or (D)", "D", 1.0),
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


def test_numbers_and_letters_that_are_none():
    assert [parse_number(x) for x in ("", "1/2/3", "1 2", "x", "9" * 5000, "--1")] == [None] * 6
    assert [letter(x) for x in ("", "apple", "b", "Big")] == [None] * 4


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
        ("tags,boxed,last_number", r"\boxed{4} 5", "4"),
        ("tags,boxed,last_number", "4 5", "5"),
    ],
)
def test_extraction(methods, text, expected):
    assert extractor(methods)(text) == expected


def test_extraction_by_pattern_and_behind_a_marker():
    assert extractor("regex", r"is (\d+)")("it is 4, it is 5") == "5"
    assert extractor("regex", r"\d+")("it is 4") == "4"
    assert extractor("last_number", after="</think>")("7 </think> 8 or 9") == "9"
    assert extractor("last_number", after="</think>")("still thinking about 7") is None
    assert reward("number", "7 is it", "7", extract="hashes", low=-1.0) == -1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "magic"}, "name is 'magic'; it must be one of exact, "),
        ({"extract": "box"}, "extract is 'box'"),
        ({"extract": "regex"}, "regex needs a pattern"),
        ({"pattern": "x"}, "regex needs a pattern"),
        ({"extract": "regex", "pattern": "("}, "no regular expression"),
        ({"low": 1.0}, "low must be below high"),
        ({"on_failure": 2.0}, "on_failure is 2.0"),
        ({"timeout": 0.0}, "timeout is 0.0"),
        ({"workers": 0}, "workers is 0"),
        ({"tolerance": -1.0}, "tolerance is -1.0"),
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
    assert (verifier.errors, verifier.timeouts) == (5, 2)
    assert time.monotonic() - begun < 30
    assert len(caplog.records) == 7
    assert "verifier of odd failed on response 'words'" in caplog.text
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


def test_mathematics():
    pytest.importorskip("math_verify")
    verifier = Verifier(VerifierConfig("math_verify", extract="boxed", timeout=20.0), "math")
    cases = [
        (r"so \boxed{0.5}", r"\frac{1}{2}", 1.0, "ok"),
        (r"so \boxed{x+1}", "1+x", 1.0, "ok"),
        (r"so \boxed{(1, 2)}", "$(1,2)$", 1.0, "ok"),
        (r"so \boxed{3}", "4", 0.0, "ok"),
        ("3", "3", 0.0, "ok"),  # not boxed
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
