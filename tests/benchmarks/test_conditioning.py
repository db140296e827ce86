"""The benchmark of conditioning runs, at sizes of no interest."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from benchmarks.conditioning import copies, run, sweeps, wanted
from benchmarks.conditioning_report import Measured, limits, ratio
from benchmarks.conditioning_variants import PLAIN, SCALE, Sizes, variants

TINY = Sizes(users=3, tokens=5, width=16, layers=1, rank=2)


@pytest.fixture(scope="module")
def compiled():
    """name: (compiled forward, its arguments)."""
    return {
        name: (jax.jit(fn).lower(*arguments).compile(), arguments)
        for name, (fn, arguments) in variants(TINY).items()
    }


def test_run_writes_tables_and_a_picture(tmp_path):
    points = {"rank": [dataclasses.replace(TINY, rank=1)]}
    run(TINY, points, 1, tmp_path / "out.md")
    lines = (tmp_path / "out.md").read_text().splitlines()
    for name in variants(TINY):
        assert sum(line.startswith(f"| {name} |") for line in lines) == 1
    assert sum(line.startswith("| 1 | scale + rank, bridge |") for line in lines) == 1
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_copies_finds_weights_of_all_users_where_they_are_built(compiled):
    largest = 4 * TINY.users * TINY.width * 4 * TINY.width
    for name, (program, _) in compiled.items():
        wanted = largest if "materialised" in name else 0
        assert copies(program.as_text(), TINY) == wanted, name


def test_variants_compute_the_same_model(compiled):
    """Built per user or not, a modulated model gives the same result."""
    results = {n: program(*arguments) for n, (program, arguments) in compiled.items()}
    for kind in ("scale", "scale + rank"):
        built = results[f"{kind}, materialised"]
        tolerance = 1e-4 * float(jnp.abs(built).max())
        for way in ("explicit", "bridge"):
            gap = jnp.abs(results[f"{kind}, {way}"] - built).max()
            assert float(gap) < tolerance
        assert float(jnp.abs(built - results[PLAIN]).max()) > 100 * tolerance


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
