"""The Python of the README runs as it is written, and its map is that of the tree."""

import itertools
import pathlib
import re

import pytest

from benchmarks.import_structure import FLOORS, floor_of
from fsa import presets
from fsa.recipes.config import resolve
from fsa.recipes.presets import people

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TEXT = README.read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def short(name):
    """The preset of a name with a quarter of its steps and of its batch."""
    config = people(name)
    config.train.steps //= 4
    config.train.batch_size //= 4
    return config


@pytest.mark.usefixtures("quick_compile")
def test_train_rank_and_plot(tmp_path, monkeypatch, capsys):
    """It trains on dicts, ranks by what the person chose, prints and plots."""
    code = BLOCKS[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(presets, "people", short)
    names = {}
    exec(compile(code, str(README), "exec"), names)
    ranking, drinks = names["ranking"], names["drinks"]
    assert str(ranking) in capsys.readouterr().out
    assert (tmp_path / "drinks.png").read_bytes().startswith(b"\x89PNG")
    # The person likes sweet drinks: so say the two choices.
    sweetness = [sweet for _, sweet, _ in drinks.values()]
    first, *_, last = (drinks[row["option"]] for row in ranking.rows())
    assert first[1] == max(sweetness) and last[1] == min(sweetness)
    assert ranking.probability[list(drinks).index("espresso")] < 0.5
    assert ranking.std.min() > 0


def test_config_file():
    names = {}
    exec(compile(BLOCKS[1], str(README), "exec"), names)
    assert resolve(names["get_config"]())["task"]["path"] == "data/mine"
    assert len(BLOCKS) == 2


def test_reading_order():
    """Fourteen files, as long as the README says."""
    section = TEXT.partition("## Read in this order")[2].partition("\n## ")[0]
    files = re.findall(r"^\d+\. \[(.*?)\]\(\1\)", section, re.MULTILINE)
    (stated,) = re.findall(r"([\d,]+) lines", section)
    lines = sum(len((ROOT / file).read_text().splitlines()) for file in files)
    assert len(files) == len(set(files)) == 14
    assert lines == pytest.approx(int(stated.replace(",", "")), rel=0.05)


def test_drawing_of_the_floors():
    """Every arrow leads down, and no room is left out."""
    (drawing,) = re.findall(r"```mermaid\n(.*?)```", TEXT, re.DOTALL)
    for line in drawing.splitlines()[1:]:
        rooms = [re.findall(r"\w+(?=\[)|\w+", part) for part in line.split("-->")]
        for above, below in itertools.pairwise(rooms):
            for room in above:
                for other in below:
                    assert floor_of(f"fsa.{room}") > floor_of(f"fsa.{other}")
    small = {
        "__main__",
        "bars",
        "digests",
        "errors",
        "exits",
        "folders",
        "installation",
        "json_files",
        "presets",
        "sizes",
        "text_tables",
    }
    rooms = {room.removeprefix("fsa.") for floor in FLOORS for room in floor}
    assert rooms - small == set(re.findall(r"(\w+)\[\1\]", drawing))
