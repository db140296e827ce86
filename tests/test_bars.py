"""Bars on a terminal, and lines in their place elsewhere, by a clock of the tests."""

import logging
import sys
import time

import pytest

from fsa import bars


@pytest.fixture
def clock(monkeypatch):
    """The clock, a list with the time; no bar shows itself meanwhile."""
    now = [100.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(bars, "_show_often", lambda bar, closed: None)
    return now


@pytest.fixture
def written(capsys):
    """All that is on stderr so far."""
    texts = []

    def read():
        texts.append(capsys.readouterr().err)
        return "".join(texts)

    return read


@pytest.fixture
def terminal(written, monkeypatch):
    """All that is on a terminal so far."""
    monkeypatch.setattr(bars, "_is_drawn", lambda: True)
    return written


@pytest.fixture
def lines(written):
    """The lines so far, where there is no terminal."""

    def read():
        assert "\r" not in written()
        return written().splitlines()

    return read


def test_what_is_quick_writes_no_line(clock, lines):
    with bars.Bar(3, "Writing", "text") as bar:
        for _ in range(3):
            clock[0] += 0.9
            bar.advance()
    assert lines() == []


def test_lines_are_few_and_the_last_tells_the_end(clock, lines):
    with bars.Bar(1000, "Writing", "text") as bar:
        for _ in range(1000):
            clock[0] += 0.1
            bar.advance()
    # At 3, 33, 63 and 93 seconds, and at the end.
    counts = [line.partition("[")[0] for line in lines()]
    assert counts[0] in ("Writing: 30/1000 ", "Writing: 31/1000 ")
    assert len(counts) == 5 and counts[-1] == "Writing: 1000/1000 "
    assert "10.00text/s" in lines()[-1]


def test_a_long_call_is_told_while_it_lasts(clock, lines):
    with bars.Bar(5, "Training", "step", done=2) as bar:
        bar.say("compiling")
        for seconds in range(70):
            clock[0] = 100 + seconds
            bar.show()
        assert len(lines()) == 3
        assert all("2/5" in line and "compiling" in line for line in lines())
        bar.say("")
        bar.advance(loss="0.5")
        clock[0] += 30
        bar.advance(valid="0.7")
    assert "compiling" not in lines()[-1]
    assert "4/5" in lines()[-1] and "loss=0.5, valid=0.7" in lines()[-1]


def test_a_terminal_has_a_bar(clock, terminal):
    with bars.Bar(2, "Training", "step") as bar:
        bar.say("compiling")
        assert "Training:   0%" in terminal()
        assert "compiling" in terminal()
        clock[0] += 9
        bar.advance(2)
    assert "2/2" in terminal()
    assert terminal().endswith("\n")


def test_the_bar_of_what_was_quick_is_removed_from_the_terminal(clock, terminal):
    with bars.Bar(2, "Writing", "text") as bar:
        bar.advance(2)
    last = terminal().split("\r")
    assert last[-1] == "" and last[-2].strip() == ""


@pytest.mark.parametrize("how", ["write", "log"])
def test_lines_are_not_glued_to_a_bar(clock, terminal, how):
    log = logging.getLogger("tests.bars")
    log.addHandler(handler := bars.LogHandler())
    with bars.Bar(2, "Training", "step") as bar:
        bar.advance()
        if how == "write":
            bars.write("a line")
        else:
            log.warning("a line")
        shown = terminal()
    log.removeHandler(handler)
    before, after = shown.split("a line")
    # The bar was cleared before, and drawn again below.
    assert before.split("\r")[-1] == "" and before.split("\r")[-2].strip() == ""
    assert after.startswith("\n") and "1/2" in after


def test_an_error_stands_below_the_bar(clock, terminal):
    bar = bars.Bar(2, "Training", "step")
    other = bars.Bar(2, "Writing", "text")
    bar.advance()
    clock[0] += 5
    bars.close_all()
    print("error: no", file=sys.stderr)
    assert terminal().endswith(("\nerror: no\n", "\rerror: no\n"))
    shown = terminal()
    for one in bar, other:
        one.advance()
        one.show()
        one.close()
    assert terminal() == shown


@pytest.mark.parametrize("drawn", [True, False])
def test_a_bar_that_is_not_shown_writes_nothing(clock, written, monkeypatch, drawn):
    monkeypatch.setattr(bars, "_is_drawn", lambda: drawn)
    with bars.Bar(2, "Training", "step", shown=False) as bar:
        clock[0] += 99
        bar.say("compiling")
        bar.advance(2)
        bar.show()
    assert written() == ""


def test_items_are_counted(clock, lines):
    found = []
    for item in bars.over([5, 6, 7], "Writing", "set"):
        clock[0] += 10
        found.append(item)
    assert found == [5, 6, 7]
    assert lines()[-1].startswith("Writing: 3/3 ")


def test_a_bar_shows_itself(monkeypatch, lines):
    """Without any call, as while a program is compiled."""
    monkeypatch.setattr(bars, "_FIRST", 0.0)
    with bars.Bar(2, "Training", "step") as bar:
        bar.say("compiling")
        waited = time.monotonic()
        while not lines() and time.monotonic() - waited < 30:
            time.sleep(0.05)
    assert "compiling" in lines()[0]
