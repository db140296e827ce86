"""Tables as text: aligned columns for a terminal, and Markdown.

A table is a list of rows of text; the first row is the head, and every row has as many
cells as the head.
"""

import re
from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Formats a table with a line below its head.

    The first column is aligned to the left and the others to the right.
    """
    # Not the tabulate package: it takes a format of its own to draw this line, and
    # strips the spaces by which names are indented.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Formats a table as Markdown; its cells are taken as Markdown, see `escape`."""
    head, *others = rows
    with_line = [head, ["---"] * len(head), *others]
    return "\n".join(f"| {' | '.join(row)} |" for row in with_line)


def escape(text: str) -> str:
    """Escapes any text for a Markdown cell, which holds a single line."""
    escaped = re.sub(r"([\\`*_|<\[\]])", r"\\\1", text)
    return "<br>".join(escaped.splitlines())
