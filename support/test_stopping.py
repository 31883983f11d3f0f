"""Ctrl-C and its like."""
import os
import signal
import threading
import time

import pytest
import torch

from support import stopping
from support.stopping import Stop


@pytest.fixture
def said(monkeypatch):
    """[(time, line), ...] of what is said."""
    lines = []
    monkeypatch.setattr(stopping, "warn", lambda line: lines.append((time.monotonic(), line)))
    return lines


def wait_for(lines):
    for _ in range(200):
        if lines:
            return
        time.sleep(0.01)


class Timed(Stop):
    """Knows when Python handled a signal."""
    def note(self, number, frame):
        self.noted = time.monotonic()
        super().note(number, frame)


def test_the_answer_comes_at_once_while_one_product_is_computed(said):
    """Python handles a signal when the product is done; the answer does not wait for that."""
    x = torch.randn(2500, 2500)
    with Timed() as stop:
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
        x @ x                                   # a second without a line of Python
        while not stop.signal:
            time.sleep(0.01)
        wait_for(said)
    assert len(said) == 1 and "again to stop at once" in said[0][1]
    assert said[0][0] < stop.noted


def test_a_second_one_ends_it_at_once(said):
    with pytest.raises(SystemExit) as end:
        with Stop() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
            signal.raise_signal(signal.SIGINT)
    assert end.value.code == 128 + signal.SIGINT


def test_of_several_processes_a_second_one_is_a_repetition(said):
    before = signal.getsignal(signal.SIGTERM)
    with Stop(several=True) as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        wait_for(said)
    assert stop.signal == signal.SIGINT and "again" not in said[0][1]
    assert signal.signal(signal.SIGTERM, before) == signal.SIG_IGN      # torchrun sends one more


def test_what_is_ignored_stays_ignored_and_all_is_given_back(said):
    hangup = getattr(signal, "SIGHUP", signal.SIGTERM)
    before = signal.signal(hangup, signal.SIG_IGN)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with Stop() as stop:
            signal.raise_signal(hangup)
            assert stop.signal == 0
            assert signal.getsignal(signal.SIGINT) == stop.note
        assert signal.getsignal(hangup) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == interrupt
    finally:
        signal.signal(hangup, before)


def test_in_another_thread_signals_are_left_alone(said):
    found = []
    def other():
        with Stop() as stop:
            found.append(stop.signal)
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [0]
