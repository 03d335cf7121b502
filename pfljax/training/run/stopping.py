"""Stops a run between two calls of the round program after a signal.

Schedulers send SIGTERM before a preemption, and a user's Ctrl-C is SIGINT. After the first signal,
the current call of the round program finishes and a checkpoint is saved; a second signal ends the
process immediately. Several processes stop after the same round.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

# A launcher and its scheduler may both send a signal for one request.
_SAME_REQUEST_SECONDS = 1.0

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal stopped the run; the exit status is 128 + `number`, as in shells.

    Attributes:
      number: The number of the signal.
    """

    def __init__(self, number: int, what: str):
        super().__init__(f"stopped by {signal.Signals(number).name} {what}")
        self.number = number


class StopRequests:
    """Context in which a first SIGTERM or SIGINT is recorded instead of ending the process.

    A program that runs on the devices delays Python's signal handlers, so a thread reads the
    signals: it prints immediately that the run will stop, and the second signal is not delayed
    either. If signals cannot be caught (outside the main thread), nothing changes.
    """

    def __init__(self):
        self._number = 0
        self._before: dict[int, object] = {}
        self._reader = self._writer = -1

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is not threading.main_thread() or os.name == "nt":
            return self
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._other_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            # A Python handler is required; the thread reads the byte in the pipe.
            self._before[number] = signal.signal(number, lambda *_: None)
        threading.Thread(target=self._listen, args=(self._reader,), daemon=True).start()
        return self

    def _listen(self, reader: int) -> None:
        noted = 0.0
        while received := os.read(reader, 1):
            if received[0] not in SIGNALS:
                continue
            if self._number:
                if time.monotonic() > noted + _SAME_REQUEST_SECONDS:
                    os._exit(128 + received[0])
                continue
            noted, self._number = time.monotonic(), received[0]
            print(
                f"{signal.Signals(self._number).name}: stopping after the current rounds; another "
                "signal ends the process immediately",
                file=sys.stderr,
                flush=True,
            )
        os.close(reader)

    def __exit__(self, *_) -> None:
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._other_fd)
            os.close(self._writer)  # ends the thread
            self._before = {}

    def signal_number(self) -> int:
        """Returns the signal received by any process of the run; 0 for none.

        All processes of a run call it at the same points, so that all stop after the same round.
        """
        if jax.process_count() == 1:
            return self._number
        return int(np.max(multihost_utils.process_allgather(np.int32(self._number))))
