"""What evaluation.json holds, and what is read back."""

import json
import math

import numpy as np
import pytest

from fsa.evaluation import evaluation_file

EVALUATION = {
    "n_context": [0, 2],
    "accuracy": [0.5, 0.75],
    "accuracy_ci": [[math.nan, math.nan], [0.7, 0.8]],
    "ceiling_accuracy": None,
    "groups": {"a": {"users": 1, "nll": (math.inf, -math.inf)}},
    "generated": {"a": {"share": [None, np.float64(0.25)]}},
    "flips_are_types": True,
}


def refuse(constant):
    raise ValueError(constant)


def test_the_file_is_strict_json(tmp_path):
    path = tmp_path / "evaluation.json"
    evaluation_file.write(path, EVALUATION)
    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["accuracy_ci"] == [[None, None], [0.7, 0.8]]
    assert content["groups"] == {"a": {"users": 1, "nll": [None, None]}}
    kept = ("n_context", "accuracy", "ceiling_accuracy", "generated", "flips_are_types")
    assert all(content[name] == EVALUATION[name] for name in kept)
    # As the check would find them.
    with pytest.raises(ValueError, match="NaN"):
        json.loads(json.dumps(EVALUATION), parse_constant=refuse)


def test_numbers_that_are_not_known_are_nan_in_lists(tmp_path):
    path = tmp_path / "evaluation.json"
    evaluation_file.write(path, EVALUATION)
    found = evaluation_file.read(path)
    np.testing.assert_array_equal(found["accuracy_ci"], EVALUATION["accuracy_ci"])
    np.testing.assert_array_equal(found["groups"]["a"]["nll"], [np.nan] * 2)
    np.testing.assert_array_equal(found["generated"]["a"]["share"], [np.nan, 0.25])
    # No list, no numbers.
    assert found["ceiling_accuracy"] is None and found["flips_are_types"] is True
