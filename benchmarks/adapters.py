"""Measures adapters: their size, and how many people's are written in a second.

    python benchmarks/adapters.py --model=FOLDER [--people=64] [--known=5]

The policy has the default modulations and random parameters, since neither size nor
time depends on them. Prints a table: bytes of one person's adapter and of the folded
language model in the same dtype; and people per second, from z to files and from
`--known` choices to files, with the processor time of one person, since other programs
share the machine. A choice is between two responses of some 60 tokens.
"""

import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import app, flags

from fsa import text_tables
from fsa.inference.adapter_folders import write_adapters
from fsa.inference.steerer import Steerer
from fsa.language.language_model import LanguageModel
from fsa.models.policy import Policy
from fsa.models.reward import RewardModel
from fsa.recipes import presets

_MODEL = flags.DEFINE_string(
    "model", None, "Folder of a language model.", required=True
)
_PEOPLE = flags.DEFINE_integer("people", 64, "Number of people.", 1)
_KNOWN = flags.DEFINE_integer("known", 5, "Choices of a person.", 1)
_LATENT_DIM, _AT_ONCE = 16, 16
_WORDS = "bread rises since yeast eats sugar and makes gas that lifts dough".split()


def _steerer(folder: str) -> Steerer:
    """Returns a policy of the default modulations, with random parameters."""
    language = LanguageModel.load(folder, dtype="float32")
    modulations = tuple(map(tuple, presets.policy("np-dpo").policy.modulations))
    policy = Policy(language.model, RewardModel(latent_dim=_LATENT_DIM), modulations)
    width = language.model.width
    variables = policy.init(jax.random.key(0), language.variables, width)
    variables = jax.tree.map(lambda x: x + 0.01, variables)
    return Steerer(policy, variables, language, "mean", (128,))


def _write(steerer: Steerer, latents: np.ndarray, folder: pathlib.Path) -> None:
    for first in range(0, len(latents), _AT_ONCE):
        part = latents[first : first + _AT_ONCE]
        folders = [folder / str(first + i) for i in range(len(part))]
        steerer.save_adapters(part, folders)


def _people(count: int) -> dict[str, list[tuple[str, str, str]]]:
    """Returns the choices of people, each between two random texts."""
    rng = np.random.default_rng(0)

    def text() -> str:
        return " ".join(rng.choice(_WORDS, 45))

    return {
        f"person {i}": [("Explain bread.", text(), text()) for _ in range(_KNOWN.value)]
        for i in range(count)
    }


def _measure(write: Callable[[], None]) -> list[str]:
    """Returns people per second, and milliseconds of processor time of a person."""
    begin, begin_of_processor = time.perf_counter(), time.process_time()
    write()
    seconds = time.perf_counter() - begin
    processor = time.process_time() - begin_of_processor
    count = _PEOPLE.value
    return [f"{count / seconds:.3g}", f"{1000 * processor / count:.3g}"]


def main(argv):
    """Writes the adapters of people whose z and choices are random."""
    del argv
    steerer = _steerer(_MODEL.value)
    count = _PEOPLE.value
    latents = np.random.default_rng(0).normal(size=(count, _LATENT_DIM))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        # The first of each compile.
        _write(steerer, latents[:_AT_ONCE], folder / "first")
        people = _people(count)
        some = _people(min(count, _AT_ONCE - 1))
        write_adapters(steerer, some, folder / "first people")
        rows = [
            ["from z", *_measure(lambda: _write(steerer, latents, folder / "z"))],
            [
                f"from {_KNOWN.value} choices",
                *_measure(lambda: write_adapters(steerer, people, folder / "people")),
            ],
        ]
        steerer.export(latents[0], folder / "folded")
        adapter, folded = (
            sum(file.stat().st_size for file in (folder / name).glob("*.safetensors"))
            for name in ("z/0", "folded")
        )
    print(f"adapter {adapter:,} bytes, folded model {folded:,} bytes", end=", ")
    print(f"{folded / adapter:.0f} times as many")
    print(text_tables.markdown([["", "people / s", "processor ms / person"], *rows]))


if __name__ == "__main__":
    app.run(main)
