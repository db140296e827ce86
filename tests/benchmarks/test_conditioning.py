"""The benchmark of conditioning runs, at sizes too small to measure."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from benchmarks.conditioning import run, sweeps, wanted
from benchmarks.conditioning_report import Measured, limits, ratio
from benchmarks.conditioning_variants import PLAIN, SCALE, Sizes, variants

TINY = Sizes(users=3, tokens=5, width=64, layers=1, rank=2)

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.slow
def test_run_writes_tables_and_a_picture(tmp_path):
    points = {"rank": [dataclasses.replace(TINY, rank=1)]}
    run(TINY, points, 1, tmp_path / "out.md")
    lines = (tmp_path / "out.md").read_text().splitlines()
    largest = f"{4 * TINY.users * TINY.width * 4 * TINY.width / 1e6:.1f}"
    for name in variants(TINY):
        (row,) = [line for line in lines if line.startswith(f"| {name} |")]
        copies = largest if "materialised" in name else "0.0"
        assert row.endswith(f"| {copies} / {copies} |")
    assert sum(line.startswith("| 1 | scale + rank, bridge |") for line in lines) == 1
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def tiny_variants():
    return variants(TINY)


@pytest.mark.parametrize(
    "kind", [pytest.param("scale", marks=pytest.mark.slow), "scale + rank"]
)
def test_variants_compute_the_same_model(kind, tiny_variants):
    """Built per user or not, a modulated model gives the same result."""

    def result(name):
        fn, arguments = tiny_variants[name]
        return jax.jit(fn)(*arguments)

    built = result(f"{kind}, materialised")
    tolerance = 1e-4 * float(jnp.abs(built).max())
    for way in ("explicit", "bridge"):
        gap = jnp.abs(result(f"{kind}, {way}") - built).max()
        assert float(gap) < tolerance
    assert float(jnp.abs(built - result(PLAIN)).max()) > 100 * tolerance


def test_a_sweep_over_users_keeps_the_tokens_and_builds_no_gigabytes():
    users = sweeps(Sizes())["users"]
    assert {sizes.users * sizes.tokens for sizes in users} == {1024}
    assert [s.users for s in users][-1] == 256
    assert any("materialised" in n for n in wanted(users[0], "users"))
    assert not any("materialised" in n for n in wanted(users[-1], "users"))


def test_ratios_pair_the_rounds():
    def measured(*seconds):
        both = {"forward": list(seconds), "gradient": list(seconds)}
        return Measured(both, {"forward": 100}, {}, {})

    # A slow round slows both: the median of ratios is 2, the ratio of medians 3.
    table = {PLAIN: measured(1, 1, 9), SCALE: measured(2, 3, 18)}
    assert ratio(table, SCALE, "forward") == 2
    others = ["scale, bridge", "scale + rank, explicit", "scale + rank, bridge"]
    table |= dict.fromkeys(others, measured(3, 3, 27))
    assert "| forward of scale, explicit | 2.00 | 1.10 |" in limits(table)
    assert not any("0.35" in line for line in limits(table))
