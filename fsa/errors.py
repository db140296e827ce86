"""Errors of wrong input, whose messages tell the user how to correct it."""


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
    # fsa is on no package index, so its extras are installed from a checkout.
    return InputError(
        f"{what} needs an extra: run pip install '.[{name}]' in the checkout of fsa "
        f"({error})"
    )
