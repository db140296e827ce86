"""People as they are stored."""

import json

import numpy as np
import pytest

from fsa.errors import InputError
from fsa.inference.person import Person

CHOICES = (("Drink?", "tea", "milk"), ("", "Übung", "茶\n"))


def test_what_is_saved_is_loaded(tmp_path):
    person = Person(CHOICES, np.array([0.1, -3e38], np.float32), "abc")
    person.save(tmp_path / "ann.json")
    found = Person.load(tmp_path / "ann.json")
    assert (found.choices, found.checkpoint) == (CHOICES, "abc")
    np.testing.assert_array_equal(found.z, person.z)
    assert found.z.dtype == np.float32


@pytest.mark.parametrize(
    "change",
    [
        # Finite in the file, and infinite as a float32.
        {"z": [1e39, 0.0]},
        {"z": [float("nan")]},
        {"z": ["1"]},
        {"z": None},
        {"checkpoint": 7},
        {"choices": [{"prompt": "a", "chosen": "b"}]},
    ],
)
def test_what_is_not_a_person_is_refused(tmp_path, change):
    path = tmp_path / "ann.json"
    Person(CHOICES, np.zeros(2, np.float32), "abc").save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=str(path)) as error:
        Person.load(path)
    assert "\n" not in str(error.value)
