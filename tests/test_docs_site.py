"""The documentation site: builds without a warning, and has every module of fsa."""

import ast
import base64
import logging
import pathlib
import re

import nbformat
import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from mkdocstrings import Inventory

import fsa
from fsa import conditioning

ROOT = pathlib.Path(__file__).resolve().parents[1]


def build_strict(config_file, site):
    """Builds a site as `make docs` does; a warning of mkdocs raises `Abort`."""
    # As mkdocs's command does; commands of fsa that ran in this process raise the level
    # of all loggers that have none of their own.
    logging.getLogger("mkdocs").setLevel(logging.INFO)
    config = load_config(str(config_file), strict=True, site_dir=str(site))
    # Else ruff is started once for each signature, to break its lines.
    if documenting := config.plugins.get("mkdocstrings"):
        options = documenting.config.handlers["python"]["options"]
        options["line_length"] = 10_000
    config.plugins.on_startup(command="build", dirty=False)
    try:
        build(config)
    finally:
        config.plugins.on_shutdown()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build_strict(ROOT / "mkdocs.yml", folder)
    return folder


@pytest.fixture(scope="module")
def documented(site):
    """The anchor of each documented name, as (file, id)."""
    with open(site / "objects.inv", "rb") as file:
        inventory = Inventory.parse_sphinx(file)
    uris = {name: item.uri.replace("$", name) for name, item in inventory.items()}
    return {name: tuple(uri.split("#")) for name, uri in uris.items()}


def public_names(path):
    """Names of the public functions and classes of a file, and of its module."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    nodes = ast.parse(path.read_text()).body
    names = [n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return module, [f"{module}.{name}" for name in names if not name.startswith("_")]


def modules(folder):
    return sorted(folder.rglob("[!_]*.py"))


def has_anchor(site, anchor):
    page, identifier = anchor
    return f'id="{identifier}"' in (site / page / "index.html").read_text()


def test_every_public_function_and_class_is_documented(site, documented):
    inside = ROOT / "fsa" / "conditioning"
    expected = []
    for path in modules(ROOT / "fsa"):
        if inside in path.parents:
            continue
        module, names = public_names(path)
        # Of a command, the page has the docstring of the module.
        expected += [module, *(n for n in names if not n.endswith(".main"))]
    assert {"fsa.losses", "fsa.losses.elbo"} < set(expected)
    assert [name for name in expected if name not in documented] == []
    assert [name for name in expected if not has_anchor(site, documented[name])] == []


def test_conditioning_is_documented_where_it_is_defined(site, documented):
    for name in conditioning.__all__:
        value = getattr(conditioning, name)
        # A type alias such as `Modulations` has no module of ours.
        module = getattr(value, "__module__", None)
        if module and module.startswith("fsa."):
            assert has_anchor(site, documented[f"{module}.{name}"]), name
        else:
            assert f"fsa.conditioning.{name}" in documented


def test_nothing_private_is_documented(documented):
    parts = [part for name in documented for part in name.split(".")]
    private = {p for p in parts if p.startswith("_") and not p.endswith("__")}
    assert private == set()


def test_the_first_page_has_all_names_of_fsa(site):
    page = (site / "api" / "fsa" / "index.html").read_text()
    shown = set(re.findall(r"<code>fsa\.(\w+)</code>", page))
    assert set(fsa.__all__) - {"__version__"} <= shown


def test_pages_load_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        found = re.findall(
            r'<(?:script|link|img)\b[^>]*(?:src|href)="([^"]+)"', page.read_text()
        )
        assert [url for url in found if "//" in url] == [], page
    assert not re.search(
        r"url\([\"']?https?:",
        "".join(sheet.read_text() for sheet in site.rglob("*.css")),
    )


# The settings of the real site, for a page of its own in a small repository.
SMALL_SITE = """
INHERIT: {root}/mkdocs.yml
nav: [index.md]
hooks: ["{root}/docs/hooks.py"]
plugins: []
extra_css: []
"""
PICTURE = b"what a picture holds"


@pytest.fixture
def build_page(tmp_path):
    """A function that builds a site of one page, and returns the HTML of its text."""
    (tmp_path / "mkdocs.yml").write_text(SMALL_SITE.format(root=ROOT))
    (tmp_path / "docs").mkdir()
    (tmp_path / "fsa").mkdir()
    (tmp_path / "fsa" / "code.py").touch()
    (tmp_path / "picture.png").write_bytes(PICTURE)

    def run(text):
        (tmp_path / "docs" / "index.md").write_text(text)
        build_strict(tmp_path / "mkdocs.yml", tmp_path / "site")
        page = (tmp_path / "site" / "index.html").read_text()
        return re.search("<article.*</article>", page, re.DOTALL)[0]

    return run


@pytest.mark.parametrize(
    "link",
    [
        "[a file](../fsa/gone.py)",
        "![a picture](../gone.png)",
        "[a page](gone.md)",
        "[a heading](#gone)",
        "[a notebook](gone.ipynb)",
    ],
)
def test_a_dead_link_fails_the_build(link, build_page):
    with pytest.raises(Abort):
        build_page(f"# Title\n\nSee {link}.\n")


def test_a_link_to_a_file_of_the_repository_is_its_path(build_page):
    page = build_page(
        "[fsa/code.py](../fsa/code.py), [the code](../fsa/code.py), `[x](../gone.py)`"
    )
    assert page.count("<code>fsa/code.py</code>") == 2
    assert "the code" in page and "<a" not in page.split("<p>")[1]
    assert "<code>[x](../gone.py)</code>" in page


def test_a_picture_of_the_repository_is_copied(build_page, tmp_path):
    page = build_page("![A picture](../picture.png)")
    source = re.search('<img[^>]*src="([^"]*)"', page)[1]
    assert (tmp_path / "site" / source).read_bytes() == PICTURE


def test_a_notebook_is_a_page_with_its_links_and_pictures(build_page, tmp_path):
    outputs = [
        nbformat.v4.new_output("stream", text="4 lines\n"),
        nbformat.v4.new_output(
            "display_data", {"image/png": base64.b64encode(PICTURE).decode()}
        ),
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# Notebook\n\n[code](../fsa/code.py)"),
            nbformat.v4.new_code_cell("draw(4)", outputs=outputs),
        ]
    )
    nbformat.write(notebook, tmp_path / "docs" / "drawing.ipynb")
    nav = "nav: [index.md, drawing.md]"
    config = tmp_path / "mkdocs.yml"
    config.write_text(config.read_text().replace("nav: [index.md]", nav))
    assert 'href="drawing/#notebook"' in build_page("[it](drawing.ipynb#notebook)")
    page = (tmp_path / "site" / "drawing" / "index.html").read_text()
    assert "4 lines" in page and "<code>fsa/code.py</code>" in page
    source = re.search('<img alt="png" src="([^"]*)"', page)[1]
    assert (tmp_path / "site" / "drawing" / source).read_bytes() == PICTURE
