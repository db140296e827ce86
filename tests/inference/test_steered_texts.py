"""Texts of a policy at several z beside those of its language model."""

import numpy as np
import policies
import pytest

from fsa.inference.steered_texts import points_between, write_side_by_side

PROMPTS = ["review the novel :", "assess", "judge the park :"]
OPTIONS = dict(max_new_tokens=10, seed=5)


def test_points_between_two_people():
    first, second = np.float32([1, -2, 0]), np.float32([3, 2, 1])
    points = points_between(first, second, 5)
    assert list(points) == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    np.testing.assert_array_equal(points["0.00"], first)
    np.testing.assert_array_equal(points["1.00"], second)
    np.testing.assert_allclose(points["0.25"], [1.5, -1, 0.25])
    # The most points that two digits can name.
    assert len(points_between(first, second, 101)) == 101


@pytest.mark.usefixtures("quick_compile")
def test_columns_differ_by_the_latent_alone(language_folder):
    steerer = policies.make_steerer(language_folder)
    shape = 2, policies.REWARD["latent_dim"]
    ann, bob = np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)
    named = {"ann": ann, "bob": bob, "ann again": ann}
    rows = write_side_by_side(steerer, PROMPTS, named, **OPTIONS)
    assert [row["prompt"] for row in rows] == PROMPTS
    columns = {name: [row["texts"][name] for row in rows] for name in rows[0]["texts"]}
    assert list(columns) == ["language model", "ann", "bob", "ann again"]
    assert columns["language model"] == steerer.language.write(PROMPTS, **OPTIONS).texts
    of_bob = np.repeat(bob[None], len(PROMPTS), axis=0)
    assert columns["bob"] == steerer.write(PROMPTS, of_bob, **OPTIONS).texts
    assert columns["ann"] == columns["ann again"] != columns["bob"]
