"""The exception for wrong input, whose message tells the user how to correct it."""


class InputError(ValueError):
    """Wrong input from the user: a file, a row, a config field or a checkpoint.

    The message is a single line that names the file, row or field and the fix. The
    commands print it and exit with status 2; any other exception is a bug in fsa and
    is shown with its traceback.
    """
