"""Configurations as a command line gives them."""

import sys

from absl import flags
from ml_collections import config_flags

from dfpo_jax.training import command_line


def read(monkeypatch, *words):
    """The configuration that train.py reads from these words."""
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("check", False, "", flag_values=values)
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(words))
    values["config"].parser = command_line._ConfigParser()
    assert values(["train.py", *words]) == ["train.py"]
    return values.config


def write(path, *lines):
    """A configuration file that changes the defaults by these lines; `config` is what to change."""
    body = "".join(f"    {line}\n" for line in lines)
    path.write_text(
        "from dfpo_jax.training.config import default_config\n\n\n"
        f"def get_config():\n    config = default_config()\n{body}    return config\n"
    )
    return f"--config={path}"
