"""`fit`: trains a run from Python, and returns what is used next."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from fsa.data import dataset, manifest, preparation
from fsa.data.embedding import Embedder, embed_dataset, name_of
from fsa.data.tables import Reader
from fsa.errors import InputError
from fsa.inference.ranker import Ranker
from fsa.inference.saved_model import POLICY, REWARD_MODEL
from fsa.inference.steerer import Steerer
from fsa.language.language_model import LanguageModel
from fsa.parallel import processes
from fsa.recipes import config as configs
from fsa.recipes.config import Config
from fsa.recipes.train import train
from fsa.training import run_directory

Rows = Sequence[Mapping[str, Any]]


def fit(
    config: ConfigDict | Mapping[str, Any],
    workdir: epath.PathLike,
    *,
    choices: Rows = (),
    ratings: Rows = (),
    embedder: Embedder | None = None,
) -> Ranker | Steerer | LanguageModel:
    """Trains the run of a config, as `fsa train` does; the same call resumes it.

    It runs on all devices that JAX has, with the mesh of the config; all processes of a
    run must call it. A model that is too large for one device cannot be returned: train
    it with `fsa.recipes.train.train`.

    Args:
      config: the config of a run, such as one of `fsa.presets`.
      workdir: the run directory, created if missing.
      choices: people's choices, one dict each with the columns of docs/data.md: user,
        chosen, rejected, and if wanted prompt, split, group. An option is a text or a
        list of numbers, its features. They become a dataset in the folder `data` of the
        run directory, in place of the config's `task.path`.
      ratings: people's ratings, likewise: user, item, value.
      embedder: what turns the texts of options into features, for reward models: the
        folder of a sentence-transformers model, or a function from a list of texts to
        vectors `[O, F]`.

    Returns:
      The best model of the run: a `Ranker` for a reward model, a `Steerer` for a
      policy, a `LanguageModel` for a language model.

    Raises:
      InputError: if the config or the rows are not valid, or if the run directory
        belongs to another config or to other rows.
      Preempted: on SIGTERM, after the state is saved.
    """
    config = configs.resolve(config)
    if choices or ratings:
        folder = processes.on_first(
            lambda: _write_data(config, workdir, choices, ratings, embedder)
        )
        config["task"]["path"] = folder
    run_dir = train(config, workdir)
    return load(run_dir, embedder=embedder)


def load(
    workdir: epath.PathLike, *, embedder: Embedder | None = None
) -> Ranker | Steerer | LanguageModel:
    """Loads the best model of a run of any kind, see `fit`.

    Raises:
      InputError: if the directory has no run, or no sound checkpoint.
    """
    kind = configs.read(workdir)["kind"]
    if kind == REWARD_MODEL:
        return Ranker.load(workdir, embedder=embedder)
    if kind == POLICY:
        return Steerer.load(workdir)
    return LanguageModel.load(epath.Path(workdir) / "model")


def _write_data(
    config: Config,
    workdir: epath.PathLike,
    choices: Rows,
    ratings: Rows,
    embedder: Embedder | None,
) -> str:
    """Writes the dataset of a run into its directory, unless it is there; its path."""
    if "path" not in config.get("task", {}):
        raise InputError("`choices`, `ratings`: a run of this config reads no dataset")
    run_dir = run_directory.locate(workdir)
    if "://" in str(run_dir):
        raise InputError(
            f"`workdir`={run_dir}: rows are kept in the run directory, which must "
            "be on a disk; write them with fsa.data.preparation and set task.path"
        )
    folder = pathlib.Path(run_dir) / "data"
    source = preparation.read_tables(
        [choices] if choices else [], [ratings] if ratings else [], Reader()
    )
    if (run_dir / "config.json").exists():
        known = manifest.read(folder)["sources"] if folder.exists() else None
        if known != source.digests:
            raise InputError(
                f"`workdir`={run_dir}: a run on other data; use another `workdir`"
            )
    else:
        preparation.prepare(folder, [source], overwrite=True)
    if embedder is not None:
        _embed(folder, embedder)
    return str(folder)


def _embed(folder: pathlib.Path, embedder: Embedder) -> None:
    found = dataset.load(folder, need_features=False).embedder
    if not found:
        embed_dataset(folder, embedder)
    elif found != name_of(embedder):
        raise InputError(
            f"`embedder`={name_of(embedder)}: the options of this run have features of "
            f"{found}; use another `workdir`"
        )
