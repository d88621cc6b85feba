"""The argument of a configuration file, as in --config=configs/NAME.py:ARGUMENT."""

from pathlib import Path


def check_argument(file: str, argument: str | None, *allowed: str) -> None:
    """Checks the argument that a configuration file's `get_config` was called with.

    Args:
      file: the configuration's `__file__`.
      argument: what followed the colon, or None.
      allowed: the arguments that the configuration knows.

    Raises:
      ValueError: `argument` is none of `allowed`; names the file and what it accepts.
    """
    if argument is None or argument in allowed:
        return
    accepts = f"the argument must be {' or '.join(allowed)} or absent" if allowed else ""
    path = Path(file)
    raise ValueError(
        f"{path.parent.name}/{path.name}:{argument}: {accepts or 'there is no such argument'}"
    )
