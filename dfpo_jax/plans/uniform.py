"""tmp"""
from dataclasses import dataclass
from typing import NamedTuple
class _P(NamedTuple):
    gives: frozenset
@dataclass(frozen=True)
class Uniform:
    def build(self, samples):
        return _P(frozenset({"groups"}) if samples > 1 else frozenset())
