"""No critic: for advantages that compare whole responses."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NoCritic:
    """Has no settings and nothing to learn."""

    def build(self) -> None:
        """No critic."""
        return None
