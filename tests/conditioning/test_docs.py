"""The examples of docs/conditioning.md run, and say what is true."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "conditioning.md"


def test_examples(capsys):
    if not PAGE.exists():
        pytest.skip("the page comes with fsa, not with the folder alone")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    plain = jax.vmap(names["model"], (None, 0))(names["params"], names["x"])
    np.testing.assert_allclose(names["y"], plain, rtol=1e-6)
    assert names["path"].shape == (5, 4)
    assert names["mine"]["out"]["kernel"].dtype == jnp.float32
    printed = capsys.readouterr().out
    assert "numbers per user" in printed and "materialised: no rule" in printed
