"""Every hint to install an extra works as it is printed."""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def texts():
    """The contents of all that users read or see printed, by path."""
    folders = ("fsa", "docs", "experiments", "benchmarks", "launch")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    kinds = (".py", ".md", ".ipynb", ".sh", ".sbatch", ".yaml", ".html")
    files = [path for path in files if path.suffix in kinds]
    return {path: path.read_text() for path in [ROOT / "README.md", *files]}


def test_hints_name_extras_that_exist():
    """fsa is on no index, so they install from the checkout: pip install '.[NAME]'."""
    hinted = set()
    for path, text in texts().items():
        hinted |= set(re.findall(r"'\.\[(\w+)\]'", text))
        hinted |= set(re.findall(r'missing_extra\(\s*"(\w+)"', text))
        assert "fsa[" not in text, path
    assert {"embed", "gguf", "slurm", "tpu"} <= hinted
    assert hinted <= PROJECT["optional-dependencies"].keys()


def test_jax_has_the_same_range_with_every_accelerator():
    extras = PROJECT["optional-dependencies"]
    (jax,) = [name for name in PROJECT["dependencies"] if name.startswith("jax>")]
    for extra in ("cuda", "tpu"):
        (needed,) = extras[extra]
        assert re.sub(r"\[\w+\]", "", needed) == jax
