"""Every public function of a file of ops is a name of the package."""

import ast
import pathlib

from dfpo_jax import ops

INTERNAL = {"checks.py", "__init__.py"}  # files without public names
HELPERS = {"as_float"}  # functions that the files share


def defined(path):
    """The names of a file's functions that do not start with an underscore."""
    body = ast.parse(path.read_text()).body
    names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    return {name for name in names if not name.startswith("_")} - HELPERS


def test_every_public_op_is_exported():
    files = [p for p in pathlib.Path(ops.__file__).parent.glob("*.py") if p.name not in INTERNAL]
    names = {name: path.stem for path in files for name in defined(path)}
    assert len(names) > 40
    for name, module in names.items():
        assert getattr(ops, name, None) is getattr(getattr(ops, module), name), name
