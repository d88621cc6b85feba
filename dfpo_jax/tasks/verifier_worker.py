"""The process that runs one verifier; started by `verifier_pool`, killed when it takes too long.

Run as a script: it imports nothing of the package. Requests and answers are pickles, one after
another, on standard input and output; what the verifier prints goes to standard error.
"""

import importlib
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


def load(name):
    """A function above, or the one that "module:function" names."""
    if name == "math_verify":
        import logging

        import math_verify as package  # noqa: F401

        logging.getLogger("math_verify").setLevel(logging.ERROR)
        return math_verify
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def main(name, memory):
    """Load the verifier, say so, answer requests until the input ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides

    def reply(*message):
        pickle.dump(message, replies)
        replies.flush()

    try:
        function = load(name)
    except Exception as error:
        return reply("broken", f"{type(error).__name__}: {error}")
    if memory > 0:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    reply("ready", None)
    while True:
        try:
            response, answer, payload, seconds = pickle.load(sys.stdin.buffer)
        except EOFError:
            return None
        # Ends the process even where the parent is gone and the verifier computes forever.
        signal.setitimer(signal.ITIMER_PROF, seconds + 5.0)
        try:
            reply("ok", float(function(response, answer, payload)))
        except BaseException as error:
            lines = traceback.format_exception_only(type(error), error)
            reply("error", "".join(lines).strip())
        signal.setitimer(signal.ITIMER_PROF, 0.0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
