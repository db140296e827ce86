"""Tables as text: aligned columns for a terminal, and Markdown.

A table is a list of rows of text; the first row is the head, and every row has as many
cells as the head. Widths are columns of a terminal, of which a Chinese character takes
two.
"""

import re
import unicodedata
from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Formats a table with a line below its head.

    The first column is aligned to the left and the others to the right. Each cell is
    put in one line, see `in_one_line`.
    """
    # Not the tabulate package: it takes a format of its own to draw this line, and
    # strips the spaces by which names are indented.
    rows = [[in_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        spaces = [
            " " * (w - width_of(cell)) for w, cell in zip(widths, row, strict=True)
        ]
        others = (gap + cell for gap, cell in zip(spaces[1:], row[1:], strict=True))
        lines.append("  ".join([row[0] + spaces[0], *others]))
    return "\n".join([lines[0], "-" * width_of(lines[0]), *lines[1:]])


def in_one_line(text: str) -> str:
    """Returns a text with spaces for line ends and for what a terminal would obey."""
    joined = re.sub(r"[ \t]*[\r\n]+\s*", " ", text)
    return "".join(c if c.isprintable() else " " for c in joined)


def width_of(text: str) -> int:
    """Returns how many columns of a terminal a text in one line takes."""
    return len(text) if text.isascii() else sum(map(_width_of_one, text))


def _width_of_one(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0  # Accents, drawn over the character before.
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Formats a table as Markdown; its cells are taken as Markdown, see `escape`."""
    head, *others = rows
    with_line = [head, ["---"] * len(head), *others]
    return "\n".join(f"| {' | '.join(row)} |" for row in with_line)


def escape(text: str) -> str:
    """Escapes any text for a Markdown cell, which holds a single line."""
    escaped = re.sub(r"([\\`*_|<\[\]])", r"\\\1", text)
    return "<br>".join(escaped.splitlines())


def fitted(rows: Sequence[Sequence[str]], width: int = 100, names: int = 40) -> str:
    """Formats a table in blocks of columns, so that it fits a terminal.

    Args:
      rows: the table.
      width: the largest width of a block, unless one column alone is wider.
      names: the largest width of the first column, with which every block begins;
        longer names lose their middle.
    """
    rows = [[shortened(row[0], names), *row[1:]] for row in rows]
    blocks, first = [], 1
    for end in range(2, len(rows[0]) + 1):
        if end == len(rows[0]) or _width(rows, first, end + 1) > width:
            blocks.append(_block(rows, first, end))
            first = end
    return "\n\n".join(blocks) or aligned(rows)


def shortened(text: str, width: int) -> str:
    """Returns a text of at most `width` columns, which keeps its two ends."""
    if width_of(text) <= width:
        return text
    kept = width - 3
    first = _beginning(text, kept - kept // 2)
    last = _beginning(text[::-1], kept // 2)[::-1]
    return f"{first}...{last}"


def _beginning(text: str, width: int) -> str:
    """Returns as many of the first characters as take at most `width` columns."""
    taken, characters = 0, []
    for character in text:
        taken += _width_of_one(character)
        if taken > width:
            break
        characters.append(character)
    return "".join(characters)


def _block(rows: Sequence[Sequence[str]], first: int, end: int) -> str:
    """Formats the first column with those from `first` to before `end`."""
    return aligned([[row[0], *row[first:end]] for row in rows])


def _width(rows: Sequence[Sequence[str]], first: int, end: int) -> int:
    # That of the line below the head.
    return width_of(_block(rows, first, end).splitlines()[1])
