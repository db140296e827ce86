"""Tables as text."""

import unicodedata

import pytest

from fsa import text_tables


def test_columns_are_aligned():
    table = text_tables.aligned([["name", "1"], ["  a", "22.5"], ["bcdefg", "3"]])
    assert table.splitlines() == [
        "name       1",
        "------------",
        "  a     22.5",
        "bcdefg     3",
    ]


def test_markdown():
    table = text_tables.markdown([["name", "n = 1"], ["a_b", ""]])
    assert table.splitlines() == ["| name | n = 1 |", "| --- | --- |", "| a_b |  |"]


def test_any_text_fits_a_markdown_cell():
    found = text_tables.escape("a_b *c* <bos> \\| `d`\r\n[link](y)")
    assert found == r"a\_b \*c\* \<bos> \\\| \`d\`<br>\[link\](y)"


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(ValueError):
        text_tables.aligned([["name", "1"], ["a"]])


@pytest.mark.parametrize("columns", [1, 2, 3, 12, 40])
def test_wide_tables_are_told_in_blocks(columns):
    """Every block begins with the names, and all cells are shown once and in order."""
    head = ["name", *(f"n={i}" for i in range(columns - 1))]
    cells = [f"{i}.{'0' * (i % 7)}" for i in range(columns - 1)]
    rows = [head, ["a " * 30, *cells], ["b", *cells]]
    blocks = [block.splitlines() for block in text_tables.fitted(rows).split("\n\n")]
    assert all(len(line) <= 100 for block in blocks for line in block)
    assert all(block[0].startswith("name") for block in blocks)
    shown = [cell for block in blocks for cell in block[3].split()[1:]]
    assert shown == cells
    assert len(blocks) == 1 or columns > 3


def test_long_names_keep_their_ends():
    assert text_tables.shortened("abcdefghij", 10) == "abcdefghij"
    found = text_tables.shortened("abcdefghijk", 8)
    assert (found[:3], found[-2:], len(found)) == ("abc", "jk", 8)


def width(text):
    """Columns by Unicode's tables: two for wide characters, none for accents."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def test_wide_characters_take_two_columns():
    """Each cell ends where its column ends, on a terminal."""
    rows = [["drink", "x"], ["紅茶", "1"], ["cafe\u0301", "22"], ["tea", "３"]]
    lines = text_tables.aligned(rows).splitlines()
    assert {width(line) for line in lines} == {len("drink") + 2 + 2}
    assert lines[2].index("1") == lines[2].index("茶") + 1 + 1 + 2 + 1


@pytest.mark.parametrize(
    "text", ["a\nb", "a \r\n  b", "a\tb", "a\u2028b", "a\x1bb", "a\x00b", "a\ud800b"]
)
def test_a_cell_takes_one_line(text):
    lines = text_tables.aligned([["x", "y"], [text, text]]).splitlines()
    assert len(lines) == 3
    assert lines[2].split() == ["a", "b", "a", "b"]
    assert lines[2].isprintable()


@pytest.mark.parametrize("text", ["紅茶" * 50, "e\u0301" * 99, "a紅" * 40])
def test_long_wide_texts_are_cut_by_their_columns(text):
    found = text_tables.shortened(text, 20)
    assert 17 <= width(found) <= 20
    first, last = found.split("...")
    assert text.startswith(first) and text.endswith(last) and last
