"""The watchdog logs calls that take too long, and no others."""

import logging
import time

import pytest

from fsa.training.monitor.watchdog import Watchdog

USUAL = 0.01


@pytest.fixture
def lines(caplog):
    """The lines that the watchdog has logged so far."""
    caplog.set_level(logging.WARNING, logger="fsa")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def watchdog():
    with Watchdog(factor=20, least_seconds=0.2) as watchdog:
        yield watchdog


def call(watchdog, count, seconds=USUAL):
    for step in range(count):
        watchdog.beat(10 * step)
        time.sleep(seconds)


def test_a_hang_shows_while_it_lasts(watchdog, lines):
    """It is logged again when it has lasted twice as long, and when it is over."""
    call(watchdog, 8)
    watchdog.beat(80)
    time.sleep(0.7)
    shown = lines()
    assert len(shown) >= 2
    assert all("Step 80" in line and "not finished" in line for line in shown)
    assert "0.01 s" in shown[0]
    watchdog.beat(90)
    (last,) = lines()[len(shown) :]
    assert "Step 80" in last and "continued" in last


def test_usual_calls_are_not_logged(watchdog, lines):
    call(watchdog, 20)
    assert not lines()


def test_the_first_calls_are_not_logged(watchdog, lines):
    """They compile, and no median is known yet."""
    call(watchdog, 4, seconds=0.3)
    assert not lines()


def test_paused_time_does_not_count(watchdog, lines):
    call(watchdog, 8)
    with watchdog.paused():
        time.sleep(0.5)
    call(watchdog, 2)
    assert not lines()
