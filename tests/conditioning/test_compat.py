"""Versions of jax: the names that compat.py relies on, and the folder alone on each.

`pytest -m slow tests/conditioning/test_compat.py` makes the environments; -s also
prints how many tests ran in each.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from fsa.conditioning import compat

TESTS = pathlib.Path(__file__).resolve().parent
PACKAGE = pathlib.Path(compat.__file__).resolve().parent


def number(version):
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def test_this_version_is_one_that_was_tried():
    assert compat.OLDEST in compat.TRIED
    assert number(compat.OLDEST) == min(map(number, compat.TRIED))
    series = {number(version)[:2] for version in compat.TRIED}
    assert number(jax.__version__)[:2] in series


def test_names_of_primitives_in_this_version():
    """The names and fields that compat.py reads, in the installed version."""

    def body(carry, x):
        return carry * x, carry

    def fn(x):
        last, ys = jax.lax.scan(body, x, jnp.ones((4, 3)), unroll=2)
        last = jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c + x, last)
        last = jax.checkpoint(jnp.sin)(last)
        return jax.nn.relu(jax.jit(jnp.cos)(last)), ys

    equations = jax.make_jaxpr(fn)(jnp.ones(3)).eqns
    scan = next(e for e in equations if e.primitive.name == "scan")
    inner, num_consts, num_carry, options = compat.scan_parts(scan)
    assert (num_consts, num_carry, len(inner.jaxpr.invars)) == (0, 1, 2)
    assert options == {"length": 4, "reverse": False, "unroll": 2}
    loop = next(e for e in equations if e.primitive.name == "while")
    test, num_test, step, num_step = compat.while_parts(loop)
    assert (num_test, num_step) == (0, 1)
    assert (len(test.jaxpr.invars), len(step.jaxpr.invars)) == (1, 2)
    names = [e.primitive.name for e in equations]
    for known in (compat.CALLS, compat.REMAT, compat.CUSTOM | compat.CALLS):
        assert known.intersection(names)
    assert "test_compat.py" in compat.source(scan)


def copied_to(folder):
    """The package and its tests, and nothing else of fsa."""
    shutil.copytree(PACKAGE, folder / "fsa" / "conditioning")
    shutil.copytree(TESTS, folder / "tests" / "conditioning")


def environment(folder, version):
    """The Python of a new environment that has jax and pytest; skips without them."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    wanted = [f"jax=={version}", "pytest"]
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *wanted],
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        pytest.skip(f"pip cannot install {wanted}: {installed.stderr.splitlines()[-1]}")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("version", [compat.OLDEST, jax.__version__])
def test_the_folder_alone(tmp_path, version):
    """All tests pass with jax and pytest alone; tests of other libraries skip."""
    python = environment(tmp_path / "venv", version)
    copied_to(tmp_path)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    finished = subprocess.run(
        [python, "-m", "pytest", "-q", "-rs", "-m", "not slow", "tests/conditioning"],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-5000:] + finished.stderr
    last = finished.stdout.splitlines()[-1]
    print(f"\njax {version}: {last}")
    reasons = re.findall(r"^SKIPPED \[\d+\] \S+ (.*)$", finished.stdout, re.MULTILINE)
    # Without the page of docs there is also no parameter for each of its examples.
    known = "could not import|comes with fsa|empty parameter set"
    assert [r for r in reasons if not re.search(known, r)] == []
    assert int(re.search(r"(\d+) passed", last)[1]) > 100
