"""The layers of the package as the README lists them: no import upward, no circle."""

import pathlib
import re

from benchmarks.import_structure import FLOORS, circles, floor_of, measure

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_no_file_imports_from_a_higher_floor_or_in_a_circle():
    found = measure(ROOT)
    assert found["upward"] == []
    assert found["circles"] == []
    assert found["without_floor"] == []


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": set()}
    assert circles(graph) == [["a", "b", "c"]]


def test_floors():
    assert floor_of("fsa.losses") < floor_of("fsa.commands.train")
    assert floor_of("fsa.lossesx") is None


def test_every_room_is_in_the_readme():
    shown = re.findall(r"`fsa/(\w+)", (ROOT / "README.md").read_text())
    rooms = {path.name for path in (ROOT / "fsa").iterdir() if path.is_dir()}
    assert rooms - {"__pycache__"} <= set(shown)
    assert {room.split(".")[1] for floor in FLOORS for room in floor} >= rooms - {
        "__pycache__"
    }
