"""The definitions of fields: defaults, documentation, the command line."""

import contextlib
import io
import pathlib

import pytest

from fsa.inference.saved_model import KINDS, POLICY, REWARD_MODEL
from fsa.recipes import fields, ranges
from fsa.recipes.config import check
from fsa.recipes.fields import FIELDS, TASKS, Field, defaults, fields_of
from fsa.training.run_directory import flatten

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "fields.md"
RUNS = [(REWARD_MODEL, task) for task in TASKS]
RUNS += [(kind, None) for kind in KINDS if kind != REWARD_MODEL]


def test_names_are_defined_once():
    names = [field.name for field in FIELDS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("kind", "task"), RUNS)
def test_defaults_have_all_fields_and_are_allowed(kind, task):
    flat = flatten(defaults(kind, task).to_dict())
    assert flat.keys() == fields_of(kind, task).keys()
    assert flat["kind"] == kind
    for name, field in fields_of(kind, task).items():
        assert field.wrong(flat[name]) is None, name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != POLICY])
def test_default_runs_are_valid(kind):
    """A policy's own defaults want several buckets and one step a call."""
    check(defaults(kind, "people").to_dict(), num_devices=1)


def test_every_optional_field_can_be_set():
    """Although nothing is set in it, it takes values of its type and no others."""
    optional = [field for field in FIELDS if field.optional]
    assert {field.name for field in optional} >= {"task.num_pairs", "task.slope"}
    for field in optional:
        config = defaults(field.kinds[0], field.tasks[0])
        section, name = field.name.split(".")
        assert config[section][name] is None
        config[section][name] = field.optional(2)
        assert config[section][name] == 2
        with pytest.raises(TypeError):
            config[section][name] = "two"


def test_docs_are_current():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        fields.main()
    assert DOCS.read_text() == out.getvalue(), "python -m fsa.recipes.fields > " + str(
        DOCS.relative_to(DOCS.parents[1])
    )


def test_help_fields(launch):
    """Every field of the config, with the value that the command line gave it."""
    finished = launch(
        "train",
        "--config=experiments/policy/corpus.py:np-dpo",
        "--config.task.num_pairs=3",
        "--help_fields",
    )
    assert finished.code == 0
    lines = finished.out.splitlines()
    shown = dict(line.split(" = ") for line in lines if not line.startswith(" "))
    assert shown.keys() == fields_of(POLICY).keys()
    assert shown["task.num_pairs"] == "3"


@pytest.mark.parametrize(
    ("found", "good", "bad"),
    [
        (ranges.number(0, 1), [0, 0.5, 1], [-0.1, 1.1, True, None, "0", float("nan")]),
        (ranges.number(0), [0, 1e9], [float("inf"), -1]),
        (ranges.whole_number(1), [1, 10**9], [0, 1.0, True, "1", None]),
        (ranges.one_of("a", "b"), ["a"], ["c", ["a"], None]),
        (ranges.growing(1), [(1,), [1, 3]], [(3, 1), (1, 1), (0, 1), (), 3, "13"]),
        (ranges.FLAG, [True, False], [1, 0, None, "yes"]),
        (ranges.PATH, ["a"], ["", None, 3]),
        (ranges.WIDTHS, [(), (3,)], [(0,), 3, (1.5,)]),
        (ranges.REMAT, ["", "nothing_saveable"], ["all", None, 1]),
        (ranges.MODULATIONS, [(("mlp/down", "scale"),)], [(("mlp", "scale"),), 3]),
        (ranges.SHAPE, [()], [3, (("hidden_size", 5),)]),
    ],
)
def test_ranges(found, good, bad):
    field = Field("a.b", good[0], found, "")
    for value in good:
        assert field.wrong(value) is None
    for value in bad:
        assert field.wrong(value), value
