"""Measures adapters: their size, and how many people's are written in a second.

    python benchmarks/adapters.py --model=FOLDER [--people=64]

The policy has the default modulations and random parameters, since neither size nor
time depends on them. Prints a table: bytes of one person's adapter and of the folded
language model in the same dtype, and people per second from z to files.
"""

import pathlib
import tempfile
import time

import jax
import numpy as np
from absl import app, flags

from fsa.inference.steerer import Steerer
from fsa.language.language_model import LanguageModel
from fsa.models.policy import Policy
from fsa.models.reward import RewardModel
from fsa.recipes import presets

_MODEL = flags.DEFINE_string(
    "model", None, "Folder of a language model.", required=True
)
_PEOPLE = flags.DEFINE_integer("people", 64, "Number of people.", 1)
_LATENT_DIM, _AT_ONCE = 16, 16


def _steerer(folder: str) -> Steerer:
    """Returns a policy of the default modulations, with random parameters."""
    language = LanguageModel.load(folder, dtype="float32")
    modulations = tuple(map(tuple, presets.policy("np-dpo").policy.modulations))
    policy = Policy(language.model, RewardModel(latent_dim=_LATENT_DIM), modulations)
    width = language.model.width
    variables = policy.init(jax.random.key(0), language.variables, width)
    variables = jax.tree.map(lambda x: x + 0.01, variables)
    return Steerer(policy, variables, language, "mean", (64,))


def _write(steerer: Steerer, latents: np.ndarray, folder: pathlib.Path) -> None:
    steerer.save_adapters(latents, [folder / str(i) for i in range(len(latents))])


def main(argv):
    """Writes the adapters of people whose z are random."""
    del argv
    steerer = _steerer(_MODEL.value)
    count = _PEOPLE.value
    latents = np.random.default_rng(0).normal(size=(count, _LATENT_DIM))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        _write(steerer, latents[:_AT_ONCE], folder / "first")  # Compiles.
        begin = time.perf_counter()
        for first in range(0, count, _AT_ONCE):
            _write(steerer, latents[first : first + _AT_ONCE], folder / str(first))
        seconds = time.perf_counter() - begin
        steerer.export(latents[0], folder / "folded")
        sizes = [
            sum(file.stat().st_size for file in (folder / name).glob("*.safetensors"))
            for name in ("0/0", "folded")
        ]
    print("| adapter, bytes | folded model, bytes | times smaller | people / s |")
    print("|---|---|---|---|")
    print(
        f"| {sizes[0]:,} | {sizes[1]:,} | {sizes[1] / sizes[0]:.0f} "
        f"| {count / seconds:.0f} |"
    )


if __name__ == "__main__":
    app.run(main)
