"""A signal lets the rounds that run finish; a second one does not."""

import signal
import subprocess
import sys
import time

import pytest

from pfljax.training.run.stopping import SIGNALS, Stopped, StopRequests

_WAIT = """
import sys, time
from pfljax.training.run.stopping import StopRequests
with StopRequests() as stop:
    print("ready", flush=True)
    while not stop.signal_number():
        time.sleep(0.01)
    print("noted", stop.signal_number(), flush=True)
    time.sleep(60 * (sys.argv[1] == "long"))
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_ends_the_process(number):
    command = [sys.executable, "-c", _WAIT, "long"]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"noted {int(number)}\n"
        process.send_signal(number)  # by the launcher, too
        time.sleep(1.2)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=20) == 128 + number
        assert process.stderr.read().startswith(f"{number.name}: stopping after the current rounds")


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequests() as stop:
        assert not stop.signal_number()
        signal.raise_signal(signal.SIGTERM)
        for _ in range(500):
            if stop.signal_number():
                break
            time.sleep(0.01)
        assert stop.signal_number() == signal.SIGTERM
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert str(Stopped(15, "after round 3")) == "stopped by SIGTERM after round 3"
