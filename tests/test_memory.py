"""What does not fit is refused before it runs."""

import jax
import jax.numpy as jnp
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
        def __init__(self, stats):
            self.stats = stats

        def memory_stats(self):
            return self.stats

    assert memory.free_bytes(Device(None)) is None
    assert memory.free_bytes(Device({"bytes_in_use": 3})) is None
    assert memory.free_bytes(Device({"bytes_in_use": 3, "bytes_limit": 10})) == 7
