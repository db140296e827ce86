"""Counts the files that a policy's config passes through on its way to the first step.

    python benchmarks/config_path.py

It trains a tiny policy from the command line with a config whose values are marked, and
notes for every call of a function of this repository, until the first step is compiled,
what it is given. Two counts are printed, with the files in the order in which the
config reaches them:

* the files that take the config, or a part of it as a mapping, and hand it on: those
  that somebody who adds a field may have to know;
* the files that are given the value of any field, as a plain argument or otherwise:
  these are also those where the values are used.
"""

import json
import pathlib
import sys
import tempfile

from ml_collections import ConfigDict

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

import policies  # noqa: E402  (found after the path is set)

from fsa.commands.main import main as command  # noqa: E402


class _Int(int):
    """A marked whole number."""


class _Float(float):
    """A marked number."""


class _Text(str):
    """A marked text."""


class _List(tuple):
    """A marked list."""


_MARKED = (_Int, _Float, _Text, _List)


def _mark(value):
    if isinstance(value, dict):
        return {name: _mark(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return _List(map(_mark, value))
    marks = {int: _Int, float: _Float, str: _Text}
    return marks.get(type(value), lambda plain: plain)(value)


_to_dict = ConfigDict.to_dict


def _has_marks(value) -> bool:
    """Returns whether a mapping has a marked value at any depth."""
    return isinstance(value, dict) and any(
        isinstance(inner, _MARKED) or _has_marks(inner) for inner in value.values()
    )


class _Tracer:
    """Notes which functions are given the config or its values, until the first step.

    Attributes:
      mappings: file -> functions that take the config or a part of it as a mapping.
      values: file -> functions that are given any of its values.
    """

    def __init__(self):
        self.mappings: dict[str, set[str]] = {}
        self.values: dict[str, set[str]] = {}
        self._ended = False

    def __call__(self, frame, event, argument):
        """Notes the arguments of one call; a callback of `sys.setprofile`."""
        del argument
        code = frame.f_code
        if event != "call" or self._ended or not self._is_ours(code.co_filename):
            return
        self._ended = code.co_qualname == "MeshRunner.__call__"
        count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 8)
        names = code.co_varnames[:count]
        given = [frame.f_locals[name] for name in names if name in frame.f_locals]
        if any(map(_has_marks, given)):
            self._note(self.mappings, code)
        if any(isinstance(value, _MARKED) or _has_marks(value) for value in given):
            self._note(self.values, code)

    @staticmethod
    def _is_ours(file: str) -> bool:
        rooms = ("fsa", "experiments")
        return file.startswith(tuple(f"{REPOSITORY / room}/" for room in rooms))

    @staticmethod
    def _note(found: dict[str, set[str]], code) -> None:
        path = str(pathlib.Path(code.co_filename).relative_to(REPOSITORY))
        found.setdefault(path, set()).add(code.co_qualname)


def main():
    """Trains a policy, and prints the files that its config reaches."""
    tracer = _Tracer()
    with tempfile.TemporaryDirectory() as folder:
        folder = policies.write_all(pathlib.Path(folder))
        sys.argv = [
            "fsa",
            "train",
            *policies.flags(folder),
            f"--workdir={folder / 'run'}",
        ]
        ConfigDict.to_dict = lambda *given: _mark(_to_dict(*given))
        sys.setprofile(tracer)
        try:
            command()
        except SystemExit as ended:
            if ended.code:
                raise
        finally:
            sys.setprofile(None)
            ConfigDict.to_dict = _to_dict
    for number, (path, functions) in enumerate(tracer.mappings.items(), 1):
        print(f"{number:3} {path}: {', '.join(sorted(functions))}")
    print("And where values are used:", *sorted(tracer.values.keys() - tracer.mappings))
    counts = {
        "files_that_take_the_config": len(tracer.mappings),
        "files_that_are_given_a_value": len(tracer.values),
    }
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
