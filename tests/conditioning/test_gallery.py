"""The examples of docs/gallery.md run, and equal a folded copy for each user."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from arrays import error
from conftest import run_on_eight_devices
from slow import slow_but

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "gallery.md"
LIBRARY = re.compile(r"^(?:import|from) (equinox|haiku|flax|jraph|diffrax)\b", re.M)
DEVICES = """
import json
from arrays import error

same = error(y, folded(params, hyper, z, x)), error(gradients, wanted)
print(json.dumps([len(y.sharding.device_set), *same]))
"""


def examples():
    """{title: code}, the first of which all others share; empty without the page."""
    text = PAGE.read_text() if PAGE.exists() else ""
    parts = re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]
    found = {}
    for part in parts:
        code = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
        if code:
            found[part.splitlines()[0]] = "\n".join(code)
    return found


SHARED, *REST = examples().values() or ("",)
OF_LIBRARIES = {LIBRARY.search(code)[1]: code for code in REST if LIBRARY.search(code)}
# Flax and Haiku have quick tests in test_docs.py, diffrax in test_custom_rules.py.
QUICK = ("equinox", "jraph")
OF_DEVICES = [code for code in REST if "shard_map" in code]


@pytest.mark.parametrize("library", slow_but(QUICK, OF_LIBRARIES))
def test_examples_of_libraries(library):
    pytest.importorskip(library)
    names = {}
    exec(compile(SHARED + OF_LIBRARIES[library], str(PAGE), "exec"), names)
    arguments = (names[name] for name in ("params", "hyper", "z", "x"))
    wanted = jax.jit(names["folded"])(*arguments)
    assert error(names["y"], wanted) < 1e-4
    # Users differ, or there would be nothing to condition.
    fresh = jax.vmap(names["model"], (None, 0))(names["params"], names["x"])
    assert not np.allclose(fresh, wanted, atol=1e-2)


@pytest.mark.slow
def test_the_example_of_devices(tmp_path):
    if not OF_DEVICES:
        pytest.skip("the page comes with fsa, not with the folder alone")
    script = tmp_path / "gallery_on_devices.py"
    folder = str(pathlib.Path(__file__).parent)
    paths = f"import sys\nsys.path.insert(0, {json.dumps(folder)})\n"
    script.write_text(paths + SHARED + OF_DEVICES[0] + DEVICES)
    devices, *errors = run_on_eight_devices(script)
    assert devices == 8 and max(errors) < 1e-5
