"""Checks an advantage of the user's own by tracing it on small shapes, before anything compiles."""

from typing import Any

from dfpo_jax import trial
from dfpo_jax.advantages.interface import Advantage, Scores, View
from dfpo_jax.settings import call_custom
from dfpo_jax.types import Array

_B, _R = (trial.SIZES[letter] for letter in "BR")
_QUANTILES, _SAMPLES = 5, 4


def check_advantage(advantage: Any, name: str) -> None:
    """See that an advantage keeps to the shapes and types of `Advantage`.

    It is traced with every kind of critic and rollout that satisfies its needs.

    Args:
      advantage: what the user's class built.
      name: of that class, "module:Class".

    Raises:
      ValueError: it is no `Advantage`, its function fails or returns something else than it must;
        one line that names the class, the function and what is expected.
    """
    trial.check_fields(advantage, Advantage, name, optional=("keep",), names="needs")
    if not isinstance(advantage.whole_response, bool):
        raise ValueError(
            f"{name}: whole_response is {advantage.whole_response!r}; it must be True or False"
        )

    def run(arrays, steps, rollout):
        view = view_of(advantage.needs, *arrays)
        found = call_custom(name, "estimate", lambda: advantage.estimate(view, steps, rollout))
        trial.check_array(found, name, "estimate", B=_B, R=_R)
        if advantage.keep is not None:
            found = call_custom(name, "keep", lambda: advantage.keep(view, steps))
            trial.check_array(found, name, "keep", B=_B, R=_R)

    heads = trial.shape(_B, _R + 1, trial.HEADS)
    scores = Scores(trial.shape(_B), trial.shape(_B))
    for quantiles in laws(advantage):
        law, returns = None, None
        if quantiles is not None:
            samples = _SAMPLES if quantiles > 1 else 1
            law, returns = trial.shape(_B, _R + 1, quantiles), trial.shape(_B, _R, samples)
        for samples in (2,) if "groups" in advantage.needs else (1, 2):
            rollout = trial.rollout(samples, advantage.needs)
            trial.trace(name, run, (law, returns, heads, scores), trial.steps(), rollout)


def view_of(
    needs: frozenset[str], law: Array | None, returns: Array | None, heads: Array, scores: Scores
) -> View | None:
    """What an advantage of such needs sees of these arrays; without a `law` there is no critic."""
    there = scores if "scores" in needs else None
    if law is None:
        return None if there is None else View(None, None, scores=there)
    return View(law, lambda lambda_: returns, heads if "heads" in needs else None, there)


def laws(advantage: Advantage) -> tuple[int | None, ...]:
    """Numbers of quantiles of the critics that satisfy an advantage; None stands for no critic."""
    if "law" in advantage.needs:
        return (_QUANTILES,)
    reads = {"value", "heads"} & advantage.needs
    return (1, _QUANTILES) if reads else (None, 1, _QUANTILES)
