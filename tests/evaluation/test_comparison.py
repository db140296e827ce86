"""Runs side by side, under names that tell them apart."""

import pytest
from made_up import evaluation, without_latent

from fsa.errors import InputError
from fsa.evaluation import evaluation_file
from fsa.evaluation.comparison import compare, distinct_names


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["runs/a", "runs/b/"], ["a", "b"]),
        (["a/x", "b/x"], ["a/x", "b/x"]),
        (["a/x", "b/x", "c/y"], ["a/x", "b/x", "c/y"]),
        (["/1/a/x", "/2/a/x"], ["1/a/x", "2/a/x"]),
        (["/x", "/a/x"], ["/x", "a/x"]),
    ],
)
def test_names(folders, names):
    assert [name.replace("//", "/") for name in distinct_names(folders)] == names


def test_a_folder_given_twice_is_refused():
    with pytest.raises(InputError, match="`compare`.*x"):
        distinct_names(["a/x", "a/y", "a/../a/x/"])


def test_other_numbers_of_known_choices_are_refused_with_the_runs(tmp_path):
    made = evaluation()
    for name, sizes in (("a", made["n_context"]), ("b", [0, 77])):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "evaluation.json"
        evaluation_file.write(path, {**made, "n_context": sizes})
    with pytest.raises(InputError, match=r"a with .*; b with 0, 77"):
        compare([tmp_path / "a", tmp_path / "b"])


def test_both_runs_of_a_name_are_shown(tmp_path, capsys):
    for folder, made in (("a", evaluation()), ("b", without_latent())):
        (tmp_path / folder / "x").mkdir(parents=True)
        evaluation_file.write(tmp_path / folder / "x" / "evaluation.json", made)
    path = compare([tmp_path / "a" / "x", tmp_path / "b" / "x"])
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert {"a/x", "b/x"} <= set(shown)
    assert path == tmp_path / "a" / "x" / "compare.png" and path.exists()
    with pytest.raises(InputError, match="evaluation.json"):
        compare([tmp_path / "a" / "x", tmp_path])
