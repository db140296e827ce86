"""Options and answers as HTML that cannot do anything but be read.

Their Markdown is shown: emphasis, lists, code, headings, quotes. HTML in a text is
shown as text, and there are no links or pictures, which would load something from
elsewhere.
"""

import functools
import html

from markdown_it import MarkdownIt

# Longer texts are shown as they are: Markdown of 100 kB takes a second.
_LONGEST = 20_000


@functools.lru_cache(maxsize=4096)
def render(text: str) -> str:
    """Returns a text in Markdown as HTML without links, pictures and raw HTML."""
    if len(text) > _LONGEST:
        return f'<p class="plain">{html.escape(text)}</p>'
    return _markdown().render(text)


@functools.cache
def _markdown() -> MarkdownIt:
    return (
        MarkdownIt("commonmark", {"html": False, "breaks": True})
        .enable(["table", "strikethrough"])
        .disable(["link", "image", "autolink", "reference"])
    )
