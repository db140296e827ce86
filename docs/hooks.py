"""What mkdocs does with the pages of `docs/` beside its plugins.

Notebooks become pages, as they were last run: `tutorial.ipynb` is `tutorial.md` for the
navigation and for links.

Pages link to files of the repository outside `docs/`, as in `../fsa/latent.py`. The
site has no such files: there the link becomes the file's path as code, and an image is
copied into the site. A link without a target stays as it is, and mkdocs warns of it,
which fails a strict build.
"""

import os
import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

# Code comes first, so that links inside it are left as they are.
_CODE_OR_LINK = re.compile(
    r"```.*?```|`[^`\n]*`|(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s:]+)\)",
    re.DOTALL,
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Replaces each notebook by a page and the pictures among its outputs."""
    for file in [f for f in files if f.src_uri.endswith(".ipynb")]:
        uri = pathlib.PurePosixPath(file.src_uri)
        markdown, resources = MarkdownExporter().from_filename(
            file.abs_src_path, {"output_files_dir": uri.stem}
        )
        page = uri.with_suffix(".md").as_posix()
        files.remove(file)
        files.append(File.generated(config, page, content=markdown))
        for name, data in resources["outputs"].items():
            picture = (uri.parent / name).as_posix()
            files.append(File.generated(config, picture, content=data))
    return files


def on_page_markdown(
    markdown: str, *, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Adapts the links of a page to notebooks and to files outside `docs/`."""
    docs = pathlib.Path(config.docs_dir).resolve()
    folder = (docs / page.file.src_uri).parent

    def adapt(link: re.Match) -> str:
        image, text, target = link.groups()
        if target is None:
            return link[0]
        path = (folder / target).resolve()
        if path.is_relative_to(docs):
            return f"{image}[{text}]({target.replace('.ipynb', '.md')})"
        if not path.exists() or not path.is_relative_to(docs.parent):
            return link[0]
        name = path.relative_to(docs.parent).as_posix()
        if image:
            files.append(File.generated(config, name, abs_src_path=str(path)))
            return f"![{text}]({os.path.relpath(docs / name, folder)})"
        shown = text.strip("`")
        return f"`{name}`" if name.endswith(shown) else f"{text} (`{name}`)"

    return _CODE_OR_LINK.sub(adapt, markdown)
