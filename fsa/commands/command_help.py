"""The help of a command: its docstring, its flags, an example, 80 columns wide.

The first line of a command's docstring ends in how it is used, with the flags that it
needs; a line of it that is indented and begins with the command is an example.
"""

import ast
import pathlib
import re
import textwrap
from types import ModuleType

from absl import flags

_WIDTH = 80

_FOLDER = pathlib.Path("experiments")

_CONFIG = """\
A config is a Python file of your own, such as this one for a reward model of the
people of a dataset:

    from fsa.recipes.presets import people

    def get_config():
        config = people("np-btl")
        config.task.path = "data/mine"
        return config

`fsa train --config=FILE --help_fields` lists its fields with their meaning; any of
them can be set on the command line: --config.train.steps=2000.
"""


def help_of(command: ModuleType) -> str:
    """Returns what `fsa COMMAND --help` prints."""
    blocks = command.__doc__.strip().split("\n\n")
    own = flags.FLAGS.get_key_flags_for_module(command)
    needed = [flag for flag in own if is_needed(flag, command.__doc__)]
    others = [flag for flag in own if flag not in needed]
    if needed:
        blocks += ["Required flags:", *map(_flag, needed)]
    if others:
        blocks += ["Other flags:" if needed else "Flags:", *map(_flag, others)]
    if any(flag.name == "config" for flag in needed):
        blocks += [*_CONFIG.strip().split("\n\n"), *_experiments()]
    return re.sub(r"\n\n(?=  --)", "\n", "\n\n".join(map(_wrapped, blocks)))


def is_needed(flag: flags.Flag, doc: str) -> bool:
    """Whether a command does not run without a flag; `doc` is its docstring."""
    usage = doc.strip().partition("\n")[0]
    in_usage = re.search(rf"--{flag.name}\b(?!\.)", usage)
    return bool(in_usage) or refuses_none(flag)


def refuses_none(flag: flags.Flag) -> bool:
    """Whether a flag was defined as required."""
    return any(not each.checker(None) for each in flag.validators)


def example_of(doc: str) -> str:
    """Returns the example in the docstring of a command, or ""."""
    found = re.search(r"^ +(fsa \w+ .*(?:\\\n.*)*)", doc, re.MULTILINE)
    return " ".join(found[1].replace("\\\n", " ").split()) if found else ""


def experiments() -> dict[str, str]:
    """Returns the experiment files below the current folder: path -> what it is.

    These are the files of a folder `experiments` that define `get_config`, each with
    the first line of its docstring.
    """
    found = {}
    for path in sorted(_FOLDER.rglob("*.py")):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        if any(getattr(node, "name", "") == "get_config" for node in tree.body):
            doc = ast.get_docstring(tree) or ""
            found[path.as_posix()] = doc.partition("\n")[0]
    return found


def _flag(flag: flags.Flag) -> str:
    name = f"[no]{flag.name}" if flag.boolean else flag.name
    # absl adds the values of an enum and that a flag may be repeated.
    meaning = re.sub(r"^<[^>]*>: |;\s+repeat this option.*", "", flag.help, flags=re.S)
    notes = []
    # The numbers that absl allows by itself are no news.
    allowed = flag.parser.syntactic_help
    if isinstance(flag.parser, flags.EnumParser):
        notes.append(f"one of {', '.join(flag.parser.enum_values)}")
    elif allowed not in ("", "an integer", "a number", "a comma separated list"):
        notes.append(allowed)
    if flag.default not in (None, "", [], False):
        notes.append(f"default {flag.default_as_str.strip(chr(39))}")
    note = f" ({'; '.join(notes)})" if notes else ""
    return f"  --{name}: {meaning}{note}"


def _experiments() -> list[str]:
    found = experiments()
    if not found:
        return []
    indent = " " * 8
    lines = [
        f"    {path}\n{textwrap.fill(what, _WIDTH, **_both(indent))}"
        for path, what in found.items()
    ]
    return [
        "Experiments here, each with variants that its first lines name:",
        "\n".join(lines),
    ]


def _both(indent: str) -> dict[str, str]:
    return {"initial_indent": indent, "subsequent_indent": indent}


def _wrapped(block: str) -> str:
    """Wraps a paragraph; one whose lines are indented or listed stays as it is."""
    if block.startswith("  --"):
        return textwrap.fill(block, _WIDTH, subsequent_indent="      ")
    if block.startswith("    "):
        return block
    if block.startswith("* "):
        items = re.split(r"\n(?=\* )", block)
        return "\n".join(
            textwrap.fill(" ".join(item.split()), _WIDTH, subsequent_indent="  ")
            for item in items
        )
    return textwrap.fill(block, _WIDTH, break_on_hyphens=False)
