"""The process that runs one verifier; started by `verifier_pool`, killed when it takes too long.

It runs as a script and imports nothing from the package. It limits the time and memory that model
text may use, and survives the exceptions that the text causes. It is not a sandbox: some verifiers
evaluate the text. It has the parent's environment, including PYTHONHASHSEED.

Requests are pickles on standard input: (seconds, settings, [pickled (response, answer, payload)]).
The process answers each response with a line of JSON on standard output. New settings first get a
line that says whether they could be loaded. The verifier cannot read standard input, and its
standard output goes to standard error.
"""

import importlib
import inspect
import json
import os
import pickle
import re
import resource
import signal
import sys
import traceback

_NOT_FINITE = re.compile(r"(?:\W*(?:nan|inf|infinity)j?)+\W*", re.IGNORECASE)


def math_verify(response, answer, payload):
    """1.0 if the package math-verify finds response and answer equal, else 0.0.

    Raises:
      ValueError: the package finds no mathematics in the reference answer.
    """
    del payload
    from math_verify import parse, verify

    gold = parse(_delimited(answer), parsing_timeout=None)
    if not gold:
        raise ValueError(f"no mathematics in the reference answer {answer!r}")
    target = parse(response, parsing_timeout=None)
    return float(verify(gold, target, timeout_seconds=None))


def _delimited(text):
    """Puts a reference into a box unless it has dollars or a box; \\$ is a currency sign."""
    dollars = re.findall(r"(?<!\\)\$", text)
    if "\\boxed" in text or len(dollars) > 1:
        return text
    if dollars:
        text = re.sub(r"(?<!\\)\$", r"\\$", text)
    return f"\\boxed{{{text}}}"


def reasoning_gym(settings):
    """The verifier of a data set: a function (response, answer, entry) -> score.

    It is the data set's own score with two corrections, so that a policy cannot exploit the score.
    A response such as "nan" or "inf" scores 0 unless it is the answer. If the data set gives
    nonsense its full score, as game_of_life_halting does for the answer False, the response must
    equal the answer, ignoring case.

    Args:
      settings: pickled (name, parameters) of the data set.
    """
    from reasoning_gym import create_dataset

    name, parameters = pickle.loads(settings)
    # Scores depend on the parameters, not on the number of entries.
    dataset = create_dataset(name, **(parameters | {"size": 1}))

    def score(response, answer, entry):
        response, answer = response.strip(), str(answer).strip()
        found = dataset.score_answer(response, entry=entry)
        if found <= 0.0 or response.casefold() == answer.casefold():
            return found
        if _NOT_FINITE.fullmatch(response):
            return 0.0
        return 0.0 if found >= 1.0 and _scores_nonsense(dataset, entry, found) else found

    return score


def _scores_nonsense(dataset, entry, full):
    try:
        return dataset.score_answer("?!", entry=entry) >= full
    except Exception:  # it refuses such a text, so it does not score it
        return False


def load(name, settings):
    """One of the functions above, or the one that "module:function" names."""
    if name == "reasoning_gym":
        return reasoning_gym(settings)
    if name == "math_verify":
        import logging

        import math_verify as package  # noqa: F401

        logging.getLogger("math_verify").setLevel(logging.ERROR)
        return math_verify
    module, _, function = name.partition(":")
    return checked(getattr(importlib.import_module(module), function))


def checked(function):
    """Returns the user's function unless it clearly cannot return a number.

    Raises:
      TypeError: it cannot be called with (response, answer, payload), or it is a coroutine.
    """
    if not callable(function):
        raise TypeError(f"{function!r} is not a function")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError("it is an async function; it must return a number, not a coroutine")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have none
        return function
    try:
        signature.bind("", "", None)
    except TypeError as error:
        raise TypeError(
            f"it takes {signature}, and is called with (response, answer, payload): {error}"
        ) from None
    return function


def _number(value):
    """A reward as a float; refuses texts, dictionaries, coroutines and the like."""
    if inspect.iscoroutine(value):
        value.close()  # otherwise Python warns that it was never awaited
    if isinstance(value, str | bytes):
        raise TypeError(f"it returned the text {value!r}; it must return a number")
    try:
        return float(value)
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise TypeError(f"it returned a {kind}; it must return a number") from None


def judge(function, request, seconds):
    """("ok", reward) or ("error", message)."""
    # Ends the process even if the parent has ended and the verifier never returns.
    signal.setitimer(signal.ITIMER_PROF, seconds + 5.0)
    try:
        return "ok", _number(function(*pickle.loads(request)))
    except BaseException as error:
        lines = traceback.format_exception_only(type(error), error)
        return "error", "".join(lines).strip()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def main(name, memory):
    """Answer requests until the input ends."""
    # Keep both pipes from the verifier: exit(), for example, closes sys.stdin.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    functions = {}

    def reply(*message):
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    while True:
        try:
            seconds, settings, batch = pickle.load(requests)
        except EOFError:
            return
        if settings not in functions:
            try:
                functions[settings] = load(name, settings)
            except Exception as error:
                return reply("broken", f"{type(error).__name__}: {error}")
            if memory > 0:
                resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            reply("ready", None)
        for request in batch:
            reply(*judge(functions[settings], request, seconds))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
