"""Reads answers of a person: key presses on a terminal, lines of anything else."""

import os
import select
import sys

try:
    import termios
    import tty
except ImportError:  # Windows has none, and reads lines.
    termios = None

BACKSPACE, END = "backspace", "end"

# What keys of a terminal send, and what lines may say in their place.
_NAMED = {"\x7f": BACKSPACE, "\x08": BACKSPACE, "\x04": END, "": END}
_LINES = {"": "enter", "undo": BACKSPACE}
# Seconds in which the rest of what one key sends has come, such as of an arrow.
_REST = 0.02


def read() -> str:
    """Waits for an answer.

    Returns:
      A character in lower case, `BACKSPACE`, or `END` at the end of the input and for
      Ctrl-D. Of a line, all of it; keys that are no single ASCII character, such as
      arrows, are "another key".
    """
    if termios and sys.stdin.isatty():
        return _key(_press(sys.stdin.fileno()))
    line = sys.stdin.readline()
    if not line:
        return END
    text = line.strip().lower()
    return _LINES.get(text, text)


def _key(sent: bytes) -> str:
    """Returns the name of the key that sent some bytes."""
    if len(sent) > 1 or not sent.isascii():
        return "another key"
    character = sent.decode()
    known = _NAMED.get(character)
    if known is None and not character.isprintable():
        return "another key"
    return known or character.lower()


def _press(terminal: int) -> bytes:
    """Returns what the next key sends; the terminal is as before afterwards.

    Keys that were pressed before do not count: nobody can have meant them for a
    question that was not shown yet. Ctrl-C stays a signal.
    """
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal, termios.TCSAFLUSH)
        sent = os.read(terminal, 1)
        if sent == b"\x1b" or sent >= b"\x80":
            while select.select([terminal], [], [], _REST)[0]:
                more = os.read(terminal, 1)
                if not more:
                    break
                sent += more
        return sent
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
