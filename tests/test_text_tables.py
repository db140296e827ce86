"""Tables as text."""

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
