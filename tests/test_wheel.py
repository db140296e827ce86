"""What `pip install .` installs, and that it runs without the checkout."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

import fsa

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What pip writes as the console script.
SCRIPT = """
import importlib.metadata
import sys

(script,) = importlib.metadata.entry_points(group="console_scripts", name="fsa")
sys.exit(script.load()())
"""
CONFIG = "from shared import base\n\n\ndef get_config():\n    return base()\n"
SHARED = """
import fsa.recipes.presets


def base():
    return fsa.recipes.presets.people("btl")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built of a copy without what earlier builds left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "fsa", source / "fsa", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("experiments", "launch", "tests"):
        (source / name).mkdir()
        (source / name / "__init__.py").touch()
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", f"--wheel-dir={folder}", source),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """Runs the console script of the unpacked wheel in a folder of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    unpacked = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    (folder / "mine.py").write_text(CONFIG)
    (folder / "shared.py").write_text(SHARED)
    (unpacked / "script").write_text(SCRIPT)

    def run(*arguments):
        finished = subprocess.run(
            [sys.executable, unpacked / "script", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(unpacked)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (finished.returncode, finished.stderr) == (0, "")
        return finished.stdout

    return run


def test_the_wheel_holds_the_package_and_the_script(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (info,) = {name.split("/")[0] for name in names if not name.startswith("fsa/")}
        script = archive.read(f"{info}/entry_points.txt").decode()
    patterns = ("**/*.py", "serving/page/static/*", "examples/*.zip", "examples/*.txt")
    files = {path for each in patterns for path in (ROOT / "fsa").glob(each)}
    assert {name for name in names if name.startswith("fsa/")} == {
        str(path.relative_to(ROOT)) for path in files
    }
    assert info.endswith(".dist-info")
    assert script.split() == ["[console_scripts]", "fsa", "=", "fsa.commands.main:main"]


@pytest.mark.slow
def test_it_runs_outside_the_checkout(run):
    assert run("--version").strip() == fsa.__version__
    assert "\n  train " in run("--help")
    assert "--workdir" in run("train", "--help")


@pytest.mark.slow
def test_config_files_import_from_the_current_folder(run):
    """As under `python -m fsa`, which puts it on the path."""
    assert "task.path" in run("train", "--config=mine.py", "--help_fields")
