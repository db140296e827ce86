"""Files that give no config, and configs with values that no run can have."""

import math
import pathlib
from collections.abc import Iterator
from typing import Any

from benchmarks import refusal_base as base
from benchmarks.malformed.case import Case, both, line, put, write_config
from fsa.recipes import fields
from fsa.recipes.fields import PEOPLE, Field

CONFIG_FILES: dict[str, str | bytes | None] = {
    "missing": None,
    "empty": "",
    "no get_config": "x = 1\n",
    "a syntax error": "def get_config(:\n",
    "an open bracket": "def get_config():\n    return (\n",
    "tabs and spaces": "def get_config():\n\tx = 1\n        return x\n",
    "raises": "def get_config():\n    raise ValueError('boom')\n",
    "raises two lines": "def get_config():\n    raise ValueError('boom\\nbang')\n",
    "raises nothing": "def get_config():\n    raise RuntimeError\n",
    "exits": "import sys\n\n\ndef get_config():\n    sys.exit(3)\n",
    "exits with a text": "import sys\n\n\ndef get_config():\n    sys.exit('no')\n",
    "asserts": "def get_config():\n    assert False\n",
    "imports nothing": "import nosuch\n\n\ndef get_config():\n    return nosuch\n",
    "an unknown name": "def get_config():\n    return nosuch\n",
    "recursion": "def get_config():\n    return get_config()\n",
    "returns None": "def get_config():\n    pass\n",
    "returns a dict": "def get_config():\n    return {'a': 1}\n",
    "returns a text": "def get_config():\n    return 'np-btl'\n",
    "wants two arguments": "def get_config(a, b):\n    return a\n",
    "get_config is a number": "get_config = 5\n",
    "an empty config": (
        "from ml_collections import ConfigDict\n\n\n"
        "def get_config():\n    return ConfigDict()\n"
    ),
    "a config of another library": (
        "from ml_collections import ConfigDict\n\n\n"
        "def get_config():\n    return ConfigDict({'lr': 1.0})\n"
    ),
    "binary": bytes(range(256)),
    "Latin-1": "# J\xf6rg\ndef get_config():\n    return 1\n".encode("latin-1"),
    "json": '{"seed": 1}',
    "an unknown preset": (
        "from fsa.recipes.presets import people\n\n\n"
        "def get_config():\n    return people('np-blt')\n"
    ),
    "an unknown field": (
        "from fsa.recipes.presets import people\n\n\n"
        "def get_config():\n    config = people()\n    config.model.hiden = 3\n"
        "    return config\n"
    ),
}
SWEEPS: dict[str, str] = {
    "no get_sweep": "",
    "of nothing": "\ndef get_sweep():\n    return []\n",
    "of None": "\ndef get_sweep():\n    pass\n",
    "a number": "\ndef get_sweep():\n    return 5\n",
    "of numbers": "\ndef get_sweep():\n    return [1, 2]\n",
    "of one dict": "\ndef get_sweep():\n    return {'seed': 0}\n",
    "raises": "\ndef get_sweep():\n    raise ValueError('boom')\n",
    "an unknown field": "\ndef get_sweep():\n    return [{'modle.hidden': 3}]\n",
    "a value out of range": "\ndef get_sweep():\n    return [{'model.hidden': 0}]\n",
    "a value of another type": "\ndef get_sweep():\n    return [{'seed': 'a'}]\n",
    "the same run twice": "\ndef get_sweep():\n    return [{'seed': 0}, {'seed': 0}]\n",
    "wants an argument": "\ndef get_sweep(a):\n    return [{'seed': a}]\n",
}


def configs(sound: pathlib.Path) -> Iterator[Case]:
    """Yields files that give no config, for every command that takes one."""
    for what, content in CONFIG_FILES.items():
        for command in ("train", "compile", "sweep", "probe"):
            # Each is the fault of the file, not of a command: two of them try each.
            if hash_of(what, command) and content is not None:
                continue
            yield Case(
                f"{command} --config: {what}",
                line(command, config="spoilt.py"),
                lambda folder, content=content: (
                    None if content is None else put(folder, "spoilt.py", content)
                ),
            )
    for command in ("train", "compile", "sweep", "probe"):
        for value in ("", "data", "mine", "mine.py:np-btl", "policy.py:"):
            if command == "probe" and value == "":
                continue
            yield Case(f"{command} --config={value}", line(command, config=value))
        yield Case(
            f"{command} without --config",
            line(command, config=None, data=None)
            if command == "probe"
            else line(command, config=None),
        )
    for what, text in SWEEPS.items():
        head = base.CONFIGS["mine.py"].partition("\n\ndef get_sweep")[0]
        yield Case(
            f"sweep: get_sweep {what}",
            line("sweep", config="spoilt.py"),
            lambda folder, text=text, head=head: put(
                folder, "spoilt.py", head + "\n" + text
            ),
        )


def hash_of(*words: str) -> int:
    """Returns 0 or 1, the same for the same words on every machine."""
    return sum(map(len, words)) % 2


_POOL = (
    *(-1, 0, 0.5, 2, 10**9, math.nan, math.inf, "nonsense", "", True),
    *((), (0,), (3, 1), ("a",)),
)
# kind or task -> the sound config with its fields
_CONFIG_OF = {PEOPLE: "mine.py", "policy": "policy.py", "language_model": "language.py"}


def wrong_values(field: Field) -> list[Any]:
    """Returns two values that a field refuses: one of its default's type, one not."""
    default = field.default_of(field.kinds[0])
    wrong = [value for value in _POOL if field.wrong(value)]
    alike = [value for value in wrong if type(value) is type(default)]
    other = [value for value in wrong if type(value) is not type(default)]
    return alike[:1] + other[:1] if alike and other else wrong[:2]


def _value_in_python(value: Any) -> str:
    is_odd = isinstance(value, float) and not math.isfinite(value)
    return f"float({str(value)!r})" if is_odd else repr(value)


def _homes() -> Iterator[tuple[str, str, Field]]:
    """Yields (config file, preset's change, field) for every field, once."""
    for field in fields.FIELDS:
        if field.kinds[0] != "reward_model":
            yield _CONFIG_OF[field.kinds[0]], "", field
        elif PEOPLE in field.tasks:
            yield "mine.py", "", field
        else:
            yield "simulated.py", field.tasks[0], field


def field_values(sound: pathlib.Path) -> Iterator[Case]:
    """Yields a value out of range and one of another type for every field.

    In a file, and by `--config.FIELD=VALUE`.
    """
    for file, task, field in _homes():
        for value in wrong_values(field):
            text = _value_in_python(value)
            yield Case(
                f"config file: {field.name} = {text}",
                line("train", config="spoilt.py"),
                lambda folder, file=file, task=task, field=field, text=text: both(
                    lambda f: _simulated(f, task) if task else None,
                    lambda f: write_config(
                        f, file, f"    config.{field.name} = {text}"
                    ),
                )(folder),
            )
        default = field.default_of(field.kinds[0])
        value = wrong_values(field)[0]
        if isinstance(default, str) and not isinstance(value, str):
            # On the command line it is a text, and any text may be allowed.
            value = "nonsense"
            if not field.wrong(value):
                continue
        shown = value if isinstance(value, str) else repr(value)
        yield Case(
            f"--config.{field.name}={shown}",
            (*line("train", config=file), f"--config.{field.name}={shown}"),
            lambda folder, task=task: _simulated(folder, task) if task else None,
        )


def _simulated(folder: pathlib.Path, task: str) -> None:
    put(
        folder,
        "simulated.py",
        "from fsa.recipes.presets import reward_model\n\n\n"
        f"def get_config():\n    config = reward_model('np-btl', {task!r})\n"
        "    return config\n",
    )


# Fields that do not go together, by config file.
TOGETHER: dict[str, tuple[dict[str, Any], ...]] = {
    "mine.py": (
        {"train.steps": 9},
        {"train.validate_every": 3},
        {"train.batch_size": 7, "train.accumulate": 2},
        {"train.accumulate": 16},
        {"mesh.fsdp": 3},
        {"mesh.tensor": 64},
        {"train.parallel": "pmap", "mesh.fsdp": 2},
        {"model.pooling": "attention", "model.hidden": 9},
        {"model.latent_dim": 0},
        {
            "model.latent_dim": 0,
            "objective.name": "deterministic",
            "model.reward": "modulated",
        },
        {"model.standard_prior": True},
        {"objective.name": "vpl"},
        {"task.min_choices": 10000},
        {"eval.num_context": "(0,5000)"},
        {"task.max_gap": 0.0},
        {"task.min_margin": 1000.0},
        {"task.train_on": "choices"},
        {"model.nosuch": 1},
        {"nosuch.hidden": 1},
        {"kind": "policy"},
        {"task.name": "two_types"},
    ),
    "policy.py": (
        {"task.buckets": "(20,30)"},
        {"model.latent_dim": 0},
        {"model.item_embeddings": True},
        {"task.num_pairs": 99},
        {"dpo.reward_steps": 8},
        {"policy.latent": "none"},
        {"policy.latent": "group"},
        {"dpo.loss": "ipo", "dpo.label_smoothing": 0.1},
        {"task.buckets": "(8,)"},
        {"task.max_prompt": 1},
        {"language_model.attention": "splash"},
        {"language_model.attention": "cudnn"},
        {"language_model.digest": "f00"},
        {"policy.modulations": "(('nosuch','scale'),)"},
        {"policy.modulations": "(('mlp/down','low_rank(0)'),)"},
        {"eval.num_context": "(0,500)"},
    ),
    "language.py": (
        {"transformer.num_kv_heads": 3},
        {"transformer.head_dim": 5},
        {"train.steps": 7},
    ),
}


def together(sound: pathlib.Path) -> Iterator[Case]:
    """Yields fields that do not go together, or with the data and the machine."""
    for file, changes in TOGETHER.items():
        for change in changes:
            given = [f"--config.{name}={value}" for name, value in change.items()]
            yield Case(
                f"{file} {' '.join(given)}", (*line("train", config=file), *given)
            )
