"""Errors of wrong input, whose messages tell the user how to correct it."""

import contextlib
import difflib
import os
import traceback
from collections.abc import Iterable, Iterator


class InputError(ValueError):
    """Wrong input from the user: a file, a row, a config field or a checkpoint.

    The message is a single line that names the file, row or field and the fix. The
    commands print it and exit with status 2; any other exception is a bug in fsa and
    is shown with its traceback.
    """


def missing_extra(name: str, what: str, error: Exception) -> InputError:
    """Returns the error for what needs an extra of fsa that is not installed.

    Args:
      name: name of the extra, as pyproject.toml has it.
      what: what needs it; the message begins with it.
      error: the error of the import.
    """
    # Imported here, since it takes a good part of the start of a command.
    from fsa import installation

    how = installation.command_of(name)
    return InputError(f"{what} needs an extra: run {how} ({error})")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns "did you mean X? " for the `nearest` known word, or ""."""
    near = nearest(word, known)
    return f"did you mean {near}? " if near else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Returns the known word that is most like a misspelt one; None if none is."""
    by_letters = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_letters, n=1, cutoff=0.65)
    return by_letters[near[0]] if near else None


@contextlib.contextmanager
def naming_line(path: str, what: str) -> Iterator[None]:
    """Turns whatever a user's Python file raises into an error of one line.

    Args:
      path: the file, as its code was compiled.
      what: what runs it; the message begins with it.

    Raises:
      InputError: naming the line of the file, for any exception but an interruption. An
        InputError keeps its text.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    except (Exception, SystemExit) as error:
        place, text = "", str(error)
        if isinstance(error, SyntaxError):
            own = error.filename == path
            place = f", line {error.lineno}" if own else f", {error.filename}"
            text = error.msg
        for frame in traceback.extract_tb(error.__traceback__):
            if os.path.abspath(frame.filename) == os.path.abspath(path):
                place = f", line {frame.lineno}"
        kind = type(error).__name__
        raise InputError(f"{what}{place}: {kind}: {text or 'no message'}") from error
