"""Parts that break their contract, and the sentence that must say so."""

import dataclasses
import re
from typing import Any

import pytest


@dataclasses.dataclass(frozen=True)
class Given:
    """Settings of a part that is there already."""

    part: Any = None

    def build(self):
        return self.part


def refused(said, call, *inputs, error=ValueError):
    """Require that a call is refused by one line that begins with `said`, a literal."""
    with pytest.raises(error, match="^" + re.escape(said)) as info:
        call(*inputs)
    assert "\n" not in str(info.value)
    return str(info.value)
