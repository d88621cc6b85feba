"""Tables of `experiments/verifiers.py`, as text."""

from collections.abc import Sequence
from typing import Any

_WIDTH = 60


def kinds_table(rows: Sequence[dict[str, Any]], solved_at: float) -> str:
    """False negatives and false positives by kind of reference, and in total.

    Args:
      rows: the rows of `rehearse`.
      solved_at: reward from which a response counts as right.
    """
    lines = [f"{'references':12s} {'pairs':>7s} {'right missed':>20s} {'wrong rewarded':>20s}"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    for kind in [*kinds, "all"]:
        own = [row for row in rows if kind in (row["kind"], "all")]
        missed, rewarded = (
            _share([row["reward"] >= solved_at for row in own if row["right"] is right], not right)
            for right in (True, False)
        )
        lines.append(f"{kind:12s} {len(own):7d} {missed:>20s} {rewarded:>20s}")
    failed = sum(row["status"] != "ok" for row in rows)
    return "\n".join([*lines, f"the verifier failed on {failed} of {len(rows)}"])


def _share(solved: Sequence[bool], counted: bool) -> str:
    if not solved:
        return "-"
    count = sum(one is counted for one in solved)
    return f"{count} of {len(solved)} ({count / len(solved):.1%})"


def mistakes_table(rows: Sequence[dict[str, Any]], solved_at: float, most: int) -> str:
    """The first mistakes of both kinds: reference, response and extracted answer."""
    lines = []
    for right, words in ((True, "right and missed"), (False, "wrong and rewarded")):
        own = [r for r in rows if r["right"] is right and (r["reward"] >= solved_at) is not right]
        for row in own[:most]:
            why = f" ({row['why']})" if row["why"] else ""
            lines.append(
                f"{words}: reference {short(row['answer'])}, response {short(row['response'])}, "
                f"found {short(row['found'])}{why}"
            )
    return "\n".join(lines) or "no mistake"


def judged_table(rows: Sequence[dict[str, Any]]) -> str:
    """Each response's extracted answer and reward, marked if the file has another reward."""
    lines = [f"{'reward':>8s}  {'in file':>8s}  {'reference':24s} found | end of the response"]
    for row in rows:
        given = "" if row["given"] is None else f"{row['given']:.3g}"
        reward = f"{row['reward']:.3g}" if row["status"] == "ok" else row["status"]
        found = "nothing" if row["found"] is None else short(row["found"])
        mark = " <- differs" if row["given"] is not None and _differs(row) else ""
        end = row["why"] or short(row["response"])
        lines.append(f"{reward:>8s}  {given:>8s}  {short(row['answer']):24s} {found} | {end}{mark}")
    compared = [row for row in rows if row["given"] is not None]
    mean = sum(row["reward"] for row in rows) / len(rows)
    failed = sum(row["status"] != "ok" for row in rows)
    lines.append(f"{len(rows)} responses, mean reward {mean:.3f}, {failed} failures")
    if compared:
        lines.append(f"{sum(map(_differs, compared))} of {len(compared)} differ from the file")
    return "\n".join(lines)


def _differs(row: dict[str, Any]) -> bool:
    return abs(row["given"] - row["reward"]) > 1e-6


def short(text: str | None, width: int = _WIDTH) -> str:
    """A text in one line, quoted; a long one is cut at its start, since answers come last."""
    if text is None:
        return "None"
    return ascii(text if len(text) <= width else "..." + text[-width:])
