"""What does not fit is refused before it runs."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfpo_jax import memory
from dfpo_jax.memory import Checked


def test_a_program_that_does_not_fit_never_runs(monkeypatch):
    calls, traces = [], []

    def square(x):
        traces.append(x.shape)
        jax.debug.callback(lambda: calls.append(1))
        return x * x

    checked = Checked("the square", jax.jit(square), "sit down")
    x = jnp.arange(1024.0)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 4095)
    with pytest.raises(MemoryError, match=r"the square needs 0\.00 GiB and .* free; sit down$"):
        checked(x)
    jax.effects_barrier()
    assert not calls
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    assert float(checked(x)[3]) == float(checked(x)[3]) == 9.0
    jax.effects_barrier()
    assert len(calls) == 2 and len(traces) == 1
    assert checked(jnp.arange(8.0)).shape == (8,)
    assert len(traces) == 2


def test_every_shape_is_checked_when_it_first_comes_up(monkeypatch):
    checked = Checked("the square", jax.jit(lambda x: x * x), "")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    assert checked(jnp.ones(8)).shape == (8,)
    with pytest.raises(MemoryError, match="the square needs"):
        checked(jnp.ones(1024))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    assert checked(jnp.ones(8)).shape == (8,)  # known to fit
    with pytest.raises(MemoryError, match="the square needs"):
        checked(jnp.ones(16))


def test_donated_arguments_are_not_counted_twice(monkeypatch):
    checked = Checked("an update", jax.jit(lambda x: x + 1.0, donate_argnums=0), "")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 100)
    assert float(checked(jnp.zeros(1024))[0]) == 1.0


def test_static_arguments_have_programs_of_their_own(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    traces = []

    def power(x, *, exponent):
        traces.append(exponent)
        return x**exponent

    checked = Checked("the power", jax.jit(power, static_argnames="exponent"), "")
    found = [float(checked(jnp.full(1, 3.0), exponent=n)[0]) for n in (2, 3, 2)]
    assert found == [9.0, 27.0, 9.0] and traces == [2, 3]


def test_devices_that_say_nothing_are_not_checked():
    class Device:
        platform = "gpu"

        def __init__(self, stats):
            self.stats = stats

        def memory_stats(self):
            return self.stats

    assert memory.free_bytes(Device(None)) is None
    assert memory.free_bytes(Device({"bytes_in_use": 3})) is None
    assert memory.free_bytes(Device({"bytes_in_use": 3, "bytes_limit": 10})) == 7


def host(root, available, groups):
    """A directory that looks like a host's /proc and /sys; groups: path -> (limit, used, cache)."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {available} kB\n")
    (root / "proc/self/cgroup").write_text(f"0::/{max(groups, default='', key=len)}\n")
    for path, (limit, used, cache) in groups.items():
        directory = root / "sys/fs/cgroup" / path
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "memory.max").write_text(f"{limit}\n")
        (directory / "memory.current").write_text(f"{used}\n")
        (directory / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


@pytest.mark.parametrize(
    ("groups", "free"),
    [
        ({}, 2048),
        ({"": ("max", 10, 0)}, 2048),
        ({"a/b": (1000, 900, 50)}, 150),
        ({"a": (500, 400, 0), "a/b": (1000, 100, 0)}, 100),
        ({"a": (500, 600, 0)}, 0),
    ],
)
def test_free_memory_of_a_host(tmp_path, groups, free):
    host(tmp_path, 2, groups)
    assert memory.host_free_bytes(tmp_path) == free


def test_a_host_that_says_nothing(tmp_path):
    assert memory.host_free_bytes(tmp_path) is None


def test_cpu_devices_share_the_memory_of_the_host(monkeypatch):
    monkeypatch.setattr(memory, "host_free_bytes", lambda: 4096)
    share = 4096 // jax.local_device_count()
    assert memory.free_bytes(jax.devices()[0]) == share
    checked = Checked("the square", jax.jit(lambda x: x * x), "sit down")
    with pytest.raises(MemoryError, match="sit down"):
        checked(jnp.ones(share // 4 + 1))
    assert checked(jnp.ones(share // 4)).shape == (share // 4,)


def test_programs_are_compiled_with_the_options_of_their_devices(monkeypatch, caplog):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    names = {"cpu": "xla_cpu_prefer_vector_width", "gpu": ""}
    names["tpu"] = "xla_jf_spmd_threshold_for_windowed_einsum_mib"
    for platform, name in names.items():
        chips = [SimpleNamespace(platform=platform)]
        assert ",".join(memory.compiler_options(chips)) == name
        monkeypatch.setenv("XLA_FLAGS", f"--{name}=256")
        assert memory.compiler_options(chips) == {}  # the user's own
        monkeypatch.delenv("XLA_FLAGS")
    # An option with a wrong value is an error; a compiler without the option does without.
    for name, value in (("xla_embed_ir_in_executable", "maybe"), ("no_such_option", "1")):
        options = {name: value}
        monkeypatch.setattr(memory, "compiler_options", lambda devices, options=options: options)
        for x in (jnp.full(8, 3.0), np.full(8, 3.0)):
            caplog.clear()
            checked = Checked("the square", jax.jit(lambda x: x * x), "")
            if name == "no_such_option":
                assert float(checked(x)[0]) == 9.0
                assert "does not know no_such_option; compiling without" in caplog.text
            else:
                with pytest.raises(jax.errors.JaxRuntimeError, match=name):
                    checked(x)


def test_a_program_compiled_ahead_is_checked_when_it_is_called(monkeypatch):
    traces = []

    def square(x):
        traces.append(x.shape)
        return x * x

    checked, x = Checked("the square", jax.jit(square), ""), jnp.ones(1024)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    checked.ahead(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding))
    for _ in range(2):
        with pytest.raises(MemoryError, match="the square needs"):
            checked(x)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    assert float(checked(x)[0]) == 1.0
    assert traces == [(1024,)]


def test_a_call_waits_for_a_program_that_another_thread_compiles():
    begun, go_on, traces = threading.Event(), threading.Event(), []

    def square(x):
        traces.append(x.shape)
        begun.set()
        assert go_on.wait(60)
        return x * x

    checked, x = Checked("the square", jax.jit(square), ""), jnp.ones(8)
    with ThreadPoolExecutor(2) as threads:
        threads.submit(checked.ahead, x)
        assert begun.wait(60)
        called = threads.submit(checked, x)
        assert not called.done()
        go_on.set()
        assert float(called.result()[0]) == 1.0
    assert traces == [(8,)]
