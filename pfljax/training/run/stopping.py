"""Ends a run between two calls of the round program when a signal asks for it.

Schedulers send SIGTERM before they take a machine away, and a user's Ctrl-C is SIGINT. The first
signal lets the current call of the round program finish, so that a checkpoint can be saved; a
second one ends the process at once. Several processes stop after the same round.
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

# A launcher and the scheduler behind it may both send the signal of one request.
_SAME_REQUEST_SECONDS = 1.0

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal ended the run, with exit status 128 + `number` as shells count.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: int, what: str):
        super().__init__(f"stopped by {signal.Signals(number).name} {what}")
        self.number = number


class StopRequests:
    """While it is open, a first SIGTERM or SIGINT is noted and does not end the process.

    A program that runs on the devices keeps Python's own signal handlers waiting, so a thread
    reads the signals: it says at once that the run is going to stop, and the second signal does
    not wait either. Where signals cannot be caught (outside the main thread) nothing changes.
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
            # Python's handler; what counts is the byte in the pipe.
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
                f"{signal.Signals(self._number).name}: stopping after the rounds that are running; "
                "another one ends the process at once",
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
        """Returns the signal that some process of the run got; 0 for none.

        All processes of a run call it at the same places, so that all stop after the same round.
        """
        if jax.process_count() == 1:
            return self._number
        return int(np.max(multihost_utils.process_allgather(np.int32(self._number))))
