"""What the programs in `experiments/` share: flags, and errors as one line with exit code 2."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from absl import app, flags


def _fail(error: Exception) -> NoReturn:
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = " ".join(str(message).split())
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a ValueError, a missing package or an unreadable file into one line and exit code 2."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        _fail(error)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse absl flags; whatever a configuration file or an override raises is a user error."""
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # a configuration file is arbitrary Python
        _fail(error)


def run(main: Callable[[Sequence[str]], Any]) -> None:
    """`absl.app.run` with errors in flags reported by `user_errors`' rule."""
    app.run(main, flags_parser=_parse_flags)
