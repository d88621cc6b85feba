"""What the programs share: flags, configuration files, and errors as one line with exit code 2."""

import contextlib
import importlib.util
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from dfpo_jax.training.config_keys import setting_paths, unknown_setting

flags.disclaim_key_flags()  # --help shows what is defined here as the program's own
_VERBOSE = flags.DEFINE_bool("verbose", False, "Also show what JAX, Orbax and others log.")
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Directory that keeps compiled programs for the next start; empty to keep none. By default "
    "$JAX_COMPILATION_CACHE_DIR, else dfpo_jax in $XDG_CACHE_HOME or ~/.cache.",
)


class _Words(absl_logging.PythonFormatter):
    """The project's own messages as plain lines, and those of other libraries with their origin."""

    def format(self, record: logging.LogRecord) -> str:
        """One message, as it is printed."""
        if record.name.partition(".")[0] != "dfpo_jax":
            return super().format(record)
        message = logging.Formatter().format(record)
        warns = record.levelno >= logging.WARNING
        return f"{record.levelname.lower()}: {message}" if warns else message


def _set_up_logging() -> None:
    """Show the project's own messages and everybody's warnings; with --verbose, everything."""
    level = absl_logging.INFO if _VERBOSE.value else absl_logging.WARNING
    absl_logging.set_verbosity(level)
    absl_logging.get_absl_handler().setFormatter(_Words())
    if not _VERBOSE.value:  # Orbax prints traces of what it raises, which we say in our own words
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("dfpo_jax").setLevel(logging.DEBUG if _VERBOSE.value else logging.INFO)


def _keep_compiled_programs() -> None:
    from dfpo_jax.training import (
        compilation_cache,
    )  # imports JAX, which wrong flags need not wait for

    compilation_cache.set_up(_CACHE.value)


def _fail(error: Exception) -> NoReturn:
    print(f"error: {_words(error)}", file=sys.stderr)
    sys.exit(2)


def _words(error: BaseException) -> str:
    """What an error says, in one line; ml_collections wraps errors in each other."""
    while len(error.args) == 1 and isinstance(error.args[0], BaseException):
        error = error.args[0]
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(message).split())


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a ValueError, a missing package or an unreadable file into one line and exit code 2."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        _fail(error)


def define_config(required: bool = True) -> flags.FlagHolder:
    """The flag --config=FILE.py[:argument], whose settings can be overridden."""
    words = "Configuration file, NAME.py[:argument]."
    holder = config_flags.DEFINE_config_file("config", None, words)
    flags.FLAGS["config"].parser = _ConfigParser()
    if required:
        flags.mark_flag_as_required("config")
    return holder


class _ConfigParser(flags.ArgumentParser):
    """Loads a configuration file, and sees that what the command line overrides is in it.

    Errors are flags.Error, which absl reports without adding its own message.
    """

    def parse(self, path: str) -> ConfigDict:
        """The file's configuration, with keys as they are.

        Raises:
          flags.Error: no such file, what the file itself raises, or an override of no setting.
        """
        file = path.partition(":")[0]
        if not (os.path.isfile(file) and file.endswith(".py")):
            raise flags.Error(f"config is {path!r}; there is no Python file {file!r}")
        try:
            config = _load(file, *path.split(":", 1)[1:])
        except ValueError as error:
            raise flags.Error(str(error)) from error
        except Exception as error:  # a configuration file is arbitrary Python
            frames = traceback.extract_tb(error.__traceback__)
            lines = [f", line {x.lineno}" for x in frames if x.filename == os.path.abspath(file)]
            where = file + "".join(lines[-1:])
            raise flags.Error(f"{where}: {type(error).__name__}: {_words(error)}") from error
        overrides = _overrides(flags.FLAGS.read_flags_from_files(sys.argv[1:], force_gnu=False))
        for name, value in overrides.items():
            if not _is_there(name, config):
                raise flags.Error(_not_there(name, file))
            if isinstance(config.get(name), ConfigDict) and value[:1] != "{":
                inside = ", ".join(config[name])
                raise flags.Error(f"config.{name} is a section; set one of its settings: {inside}")
        if hasattr(config, "begin_flags"):
            config.begin_flags()
        elif "algorithm" in overrides:
            raise flags.Error(
                f"config.algorithm is a preset; {file} does not start from default_config(), so it "
                "cannot be overridden"
            )
        return config.lock()

    def flag_type(self) -> str:
        """For --help."""
        return "config file"


def _load(file: str, *argument: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location("config_file", file)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*argument)
    if not isinstance(config, ConfigDict):
        raise TypeError(f"get_config returned {config!r}; it must be a ConfigDict")
    return config


def _overrides(argv: Sequence[str]) -> dict[str, str]:
    """Dotted names of the settings that a command line overrides, and the values behind "="."""
    found = (re.match(r"--?(?:no)?config\.([^=]+)=?(.*)", argument) for argument in argv)
    return {match[1]: match[2] for match in found if match}


def _is_there(name: str, config: ConfigDict) -> bool:
    for part in name.partition("[")[0].split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return False
        config = config[part]
    return True


def _not_there(name: str, file: str) -> str:
    from dfpo_jax.training.config import Config  # imports JAX

    if name in setting_paths(Config()):
        return f"config.{name} is left out by {file}; only what is in it can be overridden"
    return unknown_setting(name, Config())


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse absl flags; whatever is wrong with them is a user error."""
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # ml_collections raises many kinds over an override
        _fail(error)


def run(main: Callable[[], Any], argv: Sequence[str] | None = None) -> None:
    """`absl.app.run` of a program that takes flags alone; wrong flags are errors by one line.

    Args:
      main: the program, without arguments.
      argv: the command line, program name first; `sys.argv` by default.
    """

    for shared in (_VERBOSE, _CACHE):
        flags.declare_key_flag(shared.name)  # --help shows it with the program's own

    def checked(arguments: Sequence[str]) -> Any:
        with user_errors():
            if len(arguments) > 1:
                raise ValueError(f"unexpected argument {arguments[1]!r}; options start with --")
            _set_up_logging()
            _keep_compiled_programs()
        return main()

    app.run(checked, argv=argv, flags_parser=_parse_flags)
