"""The flag `--config`: an experiment file, and all that can be wrong with it.

An experiment file is Python with a function `get_config` that returns a config.
`--config=FILE:VARIANT` calls `get_config(VARIANT)`, and `--config.FIELD=VALUE` sets a
field of what it returned; ml_collections does the latter.
"""

import inspect
import os
import pathlib
import re
import runpy
import sys
from collections.abc import Iterable

from absl import flags
from ml_collections import ConfigDict, config_flags

from fsa.commands.command_help import experiments
from fsa.errors import InputError, did_you_mean, naming_line, nearest
from fsa.recipes import fields
from fsa.training.run_directory import flatten

# The flag counts as one of the command that defines it, whose --help then lists it.
flags.disclaim_key_flags()

_NAME = "config"
_LIST_FIELDS = "fsa train --config=FILE --help_fields"


def define_flag() -> flags.FlagHolder:
    """Defines the flag `--config`, whose value is the config or None."""
    holder = config_flags.DEFINE_config_file(
        _NAME, help_string="An experiment file: FILE.py, or FILE.py:VARIANT."
    )
    flags.FLAGS[_NAME].parser = _Parser()
    return holder


def config_of(flag: flags.FlagHolder) -> ConfigDict:
    """Returns the config of the file that the flag names.

    Raises:
      InputError: if none is given.
    """
    if flag.value is None:
        raise InputError(
            "`config`: write mine.py, as fsa train --help shows, and give "
            f"`config`=mine.py{_or_experiments()}"
        )
    return flag.value


def path_of(flag: flags.FlagHolder) -> str:
    """Returns the path of the file that the flag names, without the variant."""
    return flags.FLAGS[flag.name].config_filename.partition(":")[0]


def range_of(field: str) -> str | None:
    """Returns the values that a field of a config allows, in words, if it is known."""
    ranges = {each.name: each.range_text for each in fields.FIELDS}
    return ranges.get(field)


class _Parser(flags.ArgumentParser):
    """Reads the value of the flag; raises InputError for whatever is wrong with it."""

    def parse(self, path: str) -> ConfigDict:
        file, colon, variant = path.partition(":")
        what = f"`{_NAME}`={path}"
        _check_is_file(file, what)
        with naming_line(file, what):
            get_config = runpy.run_path(file).get("get_config")
        if not callable(get_config):
            raise InputError(f"{what}: define get_config() in it; {_known()}")
        arguments = [variant] if colon else []
        try:
            inspect.signature(get_config).bind(*arguments)
        except TypeError:
            fix = f"has no variants; write `{_NAME}`={file}"
            if not colon:
                fix = f"needs a variant; write `{_NAME}`={file}:VARIANT"
            raise InputError(f"{what}: its get_config {fix}") from None
        with naming_line(file, what):
            config = get_config(*arguments)
        if not isinstance(config, ConfigDict):
            kind = type(config).__name__
            raise InputError(f"{what}: get_config() gave {kind}; return a ConfigDict")
        _check_overrides(config)
        return config.lock()


def _check_is_file(path: str, what: str) -> None:
    if os.path.isdir(path):
        inside = sorted(p.as_posix() for p in pathlib.Path(path).rglob("[!_]*.py"))
        found = f"it has {', '.join(inside)}" if inside else _known()
        raise InputError(f"{what}: is a folder; name a file; {found}")
    if not os.path.isfile(path):
        raise InputError(f"{what}: no such file; {_similar(path)}{_known()}")
    if not path.endswith(".py"):
        raise InputError(f"{what}: not a Python file; {_known()}")


def _similar(path: str) -> str:
    """Returns "did you mean FILE? ", by the whole path or by the name alone."""
    here = pathlib.Path(path).parent
    beside = [str(file) for file in here.glob("[!_]*.py")] if here.is_dir() else []
    known = [*beside, *experiments()]
    stems = {pathlib.Path(file).stem: file for file in reversed(known)}
    if near := nearest(pathlib.Path(path).stem, stems):
        return f"did you mean {stems[near]}? "
    return did_you_mean(path, known)


def _known() -> str:
    """Returns which experiments there are, or how to write one."""
    found = experiments()
    if found:
        return f"experiments here: {', '.join(found)}"
    return "fsa train --help shows how to write one"


def _or_experiments() -> str:
    found = experiments()
    return f", or one of the experiments here: {', '.join(found)}" if found else ""


def _check_overrides(config: ConfigDict) -> None:
    """Raises InputError for a `--config.FIELD` that the config does not have."""
    known = flatten(config.to_dict())
    sections = {name.rpartition(".")[0] for name in known} - {""}
    for argument in sys.argv[1:]:
        given = re.match(rf"--?(?:no)?{_NAME}\.([^=]*)", argument)
        if given and given[1] not in known and given[1] not in sections:
            hint = _similar_field(given[1], known)
            raise InputError(
                f"--{_NAME}.{given[1]}: there is no such field; {hint}{_LIST_FIELDS} "
                "lists them"
            )


def _similar_field(name: str, known: Iterable[str]) -> str:
    """Returns "did you mean --config.FIELD? " for a field that a config does not have.

    Fields are compared without their sections first, which are easily mixed up.
    """
    prefix = f"--{_NAME}."
    by_last = {field.rpartition(".")[2]: prefix + field for field in known}
    if near := nearest(name.rpartition(".")[2], by_last):
        return f"did you mean {by_last[near]}? "
    return did_you_mean(prefix + name, [prefix + field for field in known])
