"""The watchdog: silent while calls take as long as ever, else not."""

import logging
import time

import pytest

from fsa.training.monitor.watchdog import Watchdog

USUAL = 0.01


@pytest.fixture
def lines(caplog):
    """What the watchdog has said so far."""
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
    """And again when it has lasted twice as long, and when it is over."""
    call(watchdog, 8)
    watchdog.beat(80)
    time.sleep(0.7)
    shown = lines()
    assert len(shown) >= 2
    assert all(line.startswith("Step 80: not done after 0.") for line in shown)
    assert "the median is 0.01 s" in shown[0]
    watchdog.beat(90)
    (last,) = lines()[len(shown) :]
    assert last.startswith("Step 80: went on after")


def test_usual_calls_say_nothing(watchdog, lines):
    call(watchdog, 20)
    assert not lines()


def test_nothing_is_known_at_first(watchdog, lines):
    """The first calls compile."""
    call(watchdog, 4, seconds=0.3)
    assert not lines()


def test_what_is_paused_is_not_counted(watchdog, lines):
    call(watchdog, 8)
    with watchdog.paused():
        time.sleep(0.5)
    call(watchdog, 2)
    assert not lines()
