"""What a metric of a run means: a description that stands beside the code that writes it."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Metric:
    """The description of one number in the rows of metrics.jsonl.

    A part declares the metrics that it alone writes as `metrics`, a class variable of its settings.
    Every other module declares its own as METRICS. A metric without a description is written too.

    Attributes:
      name: its key, such as "critic/anchor".
      meaning: what it measures, over what, and in which unit.
      formula: as it is computed; "" where the meaning says it.
      healthy: the values to expect, or what to compare it with.
      advice: where to look and what to change where it is otherwise.
      when: which rows have it; "" for every iteration of a run that has the part.

    Raises:
      ValueError: one of them is no text.
    """

    name: str
    meaning: str
    formula: str = ""
    healthy: str = ""
    advice: str = ""
    when: str = ""

    def __post_init__(self):
        """Check that all are texts: a report at the end of a run shows them."""
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, str):
                raise ValueError(f"{item.name} of a metric is {value!r}; it must be a text")


def metrics_of(part: Any) -> tuple[Metric, ...]:
    """The descriptions that the settings of a part declare.

    A part of the user's own may declare none, or may use the name for something else.
    """
    found = getattr(type(part), "metrics", ())  # of the class: a property might raise
    if not isinstance(found, tuple | list):
        return ()
    return tuple(x for x in found if isinstance(x, Metric))
