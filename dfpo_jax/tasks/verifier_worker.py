"""The process that runs one verifier; started by `verifier_pool`, killed when it takes too long.

Run as a script: it imports nothing of the package. It bounds the time and the memory that model
text may cost and survives what that text raises, but is no sandbox: some verifiers evaluate it. The
environment is the parent's, PYTHONHASHSEED included.

Requests are pickles on standard input, (seconds, settings, [pickled (response, answer, payload)]);
each is answered with a line of JSON on standard output, after one that says whether settings that
are new could be loaded. The verifier itself reads nothing and prints to standard error.
"""

import importlib
import json
import os
import pickle
import resource
import signal
import sys
import traceback


def math_verify(response, answer, payload):
    """1.0 where the package math-verify finds response and answer equal, else 0.0.

    Raises:
      ValueError: no mathematics is found in the reference answer.
    """
    del payload
    from math_verify import parse, verify

    gold = parse(_delimited(answer), parsing_timeout=None)
    if not gold:
        raise ValueError(f"no mathematics in the reference answer {answer!r}")
    target = parse(response, parsing_timeout=None)
    return float(verify(gold, target, timeout_seconds=None))


def _delimited(text):
    return text if "\\boxed" in text or "$" in text else f"\\boxed{{{text}}}"


def reasoning_gym(settings):
    """The verifier of a data set: a function (response, answer, entry) -> score.

    Args:
      settings: pickled (name, parameters) of the data set.
    """
    from reasoning_gym import create_dataset

    name, parameters = pickle.loads(settings)
    # Scores depend on the parameters, but on no entry that a data set makes beforehand.
    dataset = create_dataset(name, **(parameters | {"size": 1}))
    return lambda response, answer, entry: dataset.score_answer(response.strip(), entry=entry)


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
    return getattr(importlib.import_module(module), function)


def judge(function, request, seconds):
    """("ok", reward) or ("error", message)."""
    # Ends the process even where the parent is gone and the verifier computes forever.
    signal.setitimer(signal.ITIMER_PROF, seconds + 5.0)
    try:
        return "ok", float(function(*pickle.loads(request)))
    except BaseException as error:
        lines = traceback.format_exception_only(type(error), error)
        return "error", "".join(lines).strip()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def main(name, memory):
    """Answer requests until the input ends."""
    # Neither pipe is left to the verifier: exit(), for one, closes sys.stdin.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
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
