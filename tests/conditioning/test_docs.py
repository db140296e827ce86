"""The examples of docs/conditioning.md run, and their claims hold."""

import contextlib
import io
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "conditioning.md"
LIBRARY = re.compile(r"^(?:import|from) (flax|equinox|haiku)\b", re.MULTILINE)


def blocks():
    """Python blocks of the page, in order; none if there is no page."""
    text = PAGE.read_text() if PAGE.exists() else ""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run(code, names):
    exec(compile(code, str(PAGE), "exec"), names)


def assert_fresh_is_plain(names):
    """The output with a fresh hypernetwork equals that of `model`."""
    plain = jax.vmap(names["model"], (None, 0))(names["params"], names["x"])
    np.testing.assert_allclose(names["y"], plain, rtol=1e-5, atol=1e-6)


OF_LIBRARIES = [code for code in blocks() if LIBRARY.search(code)]
LIBRARY_NAMES = [LIBRARY.search(code)[0].split()[1] for code in OF_LIBRARIES]


@pytest.fixture(scope="module")
def page():
    """(names, printed text) after all examples that need jax alone."""
    if not PAGE.exists():
        pytest.skip("the page comes with fsa, not with the folder alone")
    names, checked, printed = {}, 0, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for code in blocks():
            if code not in OF_LIBRARIES:
                run(code, names)
                if re.search(r"^y = ", code, re.MULTILINE):
                    assert_fresh_is_plain(names)
                    checked += 1
    assert checked == 3
    return names, printed.getvalue()


def test_examples(page):
    names, printed = page
    assert names["path"].shape == (5, 4)
    assert names["mine"]["out"]["kernel"].dtype == jnp.float32
    assert "numbers per user" in printed and "materialised: no rule" in printed


@pytest.mark.parametrize("code", OF_LIBRARIES, ids=LIBRARY_NAMES)
def test_libraries(code, page):
    pytest.importorskip(LIBRARY.search(code)[1])
    names = dict(page[0])
    run(code, names)
    assert_fresh_is_plain(names)
