"""Stops a run on a signal: it finishes the iteration, saves, and exits with its own code."""

import logging
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils

_LOG = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h, "try again later": launchers then restart with --resume.
EXIT_CODE = 75


class Preempted(Exception):
    """A run was asked to stop and has saved its state."""


class StopSignals:
    """Inside this context SIGTERM and SIGINT ask for a stop instead of causing one.

    The first signal sets a flag that `requested` reads between iterations; a second one has its
    usual effect. Only the main thread may enter.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __enter__(self) -> "StopSignals":
        """Install the handlers."""
        self._asked = False
        self._before = {number: signal.getsignal(number) for number in self.SIGNALS}
        for number in self.SIGNALS:
            signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception) -> None:
        """Restore the former handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame) -> None:
        del frame
        self._asked = True
        for each in self.SIGNALS:
            signal.signal(each, self._before[each])
        name = signal.Signals(number).name
        _LOG.warning("%s: saving after this iteration; a second signal stops at once", name)

    def requested(self) -> bool:
        """Whether any process of the run was asked to stop; every process must call this."""
        if jax.process_count() == 1:
            return self._asked
        return bool(np.any(multihost_utils.process_allgather(np.array(self._asked))))
