"""Texts on the page: Markdown is shown, and nothing in a text does anything."""

import html.parser

import pytest

from fsa.serving.page.markdown import render


class Tags(html.parser.HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.text += data


def test_markdown_is_shown():
    tags = Tags(
        render("# Tea\n\n- *green*\n- `black`\n\n| a | b |\n|-|-|\n| 1 | 2 |")
    ).tags
    names = {tag for tag, _ in tags}
    assert {"h1", "li", "em", "code", "td"} <= names


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "a <b onclick='x()'>b</b> <!-- c --> &lt;script&gt;",
        "[a](javascript:alert(1)) [b](http://example.com) <http://example.com>",
        "![a](http://example.com/a.png)",
        "[a]\n\n[a]: http://example.com",
        '"><svg onload=alert(1)>',
        "<style>*{display:none}</style>",
        "<script>" + "x" * 100_000,
    ],
)
def test_html_links_and_pictures_are_text(text):
    found = Tags(render(text))
    assert {tag for tag, _ in found.tags} <= {"p", "br"}
    assert all(name == "class" for _, attrs in found.tags for name, _ in attrs)


def test_what_is_shown_of_html_is_what_was_written():
    text = "<script>alert('1')</script> & <b>"
    assert Tags(render(text)).text.strip() == text
    long = "<b>" + "é" * 30_000
    assert Tags(render(long)).text == long
