"""The README's Python runs and means what it says; the package is light until its ops are used."""

import pathlib
import re
import subprocess
import sys

import numpy as np

from dfpo_jax import ops

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_the_losses_of_the_readme():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    mask, advantages = names["mask"], names["advantages"]
    assert names["targets"].shape == (2, 3, 16) and names["returns"].shape == (2, 3)
    # Nothing has moved yet: the ratio is 1 everywhere.
    np.testing.assert_allclose(names["loss"], -ops.masked_mean(advantages, mask), rtol=1e-6)
    gradient = np.asarray(names["gradient"])
    assert gradient.shape == (2, 3, 5) and np.all(gradient[1, 2] == 0.0)
    taken = np.take_along_axis(gradient, np.asarray(names["tokens"])[..., None], axis=-1)[..., 0]
    valid = np.asarray(mask) > 0
    np.testing.assert_array_equal(np.sign(-taken[valid]), np.sign(np.asarray(advantages)[valid]))


def test_ops_are_an_attribute_of_the_package_and_imported_late():
    code = (
        "import sys, dfpo_jax; assert 'jax' not in sys.modules; dfpo_jax.ops.masked_mean; "
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized(); "
        "assert not hasattr(dfpo_jax, 'nothing')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
