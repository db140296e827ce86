"""Parameters of tests, of which most run only with `-m slow`."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def slow_but(quick: Container, values: Iterable) -> list[Any]:
    """Marks all values but the quick ones as slow; a tuple is for several arguments."""

    def param(value):
        arguments = value if isinstance(value, tuple) else (value,)
        marks = () if value in quick else pytest.mark.slow
        return pytest.param(*arguments, marks=marks)

    return [param(value) for value in values]
