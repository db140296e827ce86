"""Steps of the DPO trainer of TRL, in a process of another Python."""

import contextlib
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.dpo_variants import BETA, LEARNING_RATE, NLL_WEIGHT, Sizes
from benchmarks.language_model import OUTPUTS
from fsa.data.tasks.pairs import PairBatch
from fsa.language import huggingface
from fsa.language.huggingface import weights


@contextlib.contextmanager
def trl(
    sizes: Sizes, variables: Any, batch: PairBatch, python: str
) -> Iterator[tuple[Callable[[], float], str]]:
    """Yields a function that waits for one step of TRL's trainer, and its versions.

    The function returns the seconds of processor time that TRL's process took so far.

    Args:
      sizes: the sizes of the model, and the rank of LoRA.
      variables: the model's variables.
      batch: the choices of every step.
      python: a Python that has trl, peft and PyTorch.

    Raises:
      RuntimeError: if its process ends, as it does if its reference log-probs differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save(pathlib.Path(folder) / "model", sizes.described, variables)
        arrays = {**batch.responses._asdict(), "reference": batch.reference}
        pairs = {n: x.reshape(-1, *x.shape[2:]) for n, x in arrays.items()}
        np.savez(pathlib.Path(folder) / "batch.npz", **pairs)
        model, _ = sizes.make()
        names = weights.parameters_of(model)
        maps = {
            names[f"layers/{name}/kernel"].names[0].split(".")[-2] for name in OUTPUTS
        }
        command = [
            python,
            str(pathlib.Path(__file__).with_name("trl_dpo.py")),
            f"--folder={folder}",
            f"--maps={','.join(sorted(maps))}",
            f"--rank={sizes.rank}",
            f"--beta={BETA}",
            f"--nll_weight={NLL_WEIGHT}",
            f"--learning_rate={LEARNING_RATE}",
        ]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        ) as process:

            def answer():
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError("TRL's process ended; its error is above")
                return line.strip()

            def step():
                process.stdin.write("step\n")
                process.stdin.flush()
                return float(answer())

            yield step, answer()
