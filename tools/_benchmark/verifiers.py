"""Responses per second of each built-in verifier."""

import importlib.util
import time

from dfpo_jax.tasks import Item
from dfpo_jax.tasks.numbers import parse_number
from dfpo_jax.tasks.verifiers import BUILT_IN, Verifier, VerifierConfig

_WORK = (
    "She has 16 - 3 - 4 = 9 eggs left and sells each of them at $2, so she makes 9 * 2 dollars.\n"
)
# By verifier: (extract, a response, a reference), as format strings over the row's number.
CASES = {
    "exact": ("none", "blue whale {0}", "blue whale {1}"),
    "normalised": ("tags,none", "<answer>The blue whale {0}.</answer>", "blue whale {1}"),
    "number": ("hashes,boxed,last_number", _WORK + "The answer is {0} dollars.", "{1}"),
    "choice": ("none", "Option E fails. The answer is (B): {0} is more than {1}.", "B"),
    "math_verify": ("boxed", _WORK + "So it is $\\boxed{{{0}x}}$.", "{1}x"),
}
_ROWS = {"math_verify": 200}


def verifiers(repeats: int) -> dict:
    """Responses per second of each built-in verifier; eight responses share a reference.

    The time is CPU time, which other load changes little. For `math_verify`, which runs in two
    child processes, it is wall time; it is left out if the package is missing.
    """
    rates = {}
    for name in BUILT_IN:
        if name == "math_verify" and importlib.util.find_spec("math_verify") is None:
            continue
        extract, response, answer = CASES[name]
        rows = range(_ROWS.get(name, 4000))
        items = [Item("?", answer.format(row, row // 8), index=row) for row in rows]
        responses = [response.format(row, row // 8) for row in rows]
        verifier = Verifier(VerifierConfig(name, extract, timeout=30.0), "benchmark")
        clock = time.perf_counter if name == "math_verify" else time.process_time
        times = []
        for _ in range(repeats):
            parse_number.cache_clear()
            begun = clock()
            verifier.judge(items, responses)
            times.append(clock() - begun)
        rates[f"{name}_per_second"] = len(rows) / min(times)
    return rates


BENCHMARKS = {"verifiers": verifiers}
