"""`fit`: trains a run from Python, and returns what is used next."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from fsa.data import dataset, embedding, manifest, preparation
from fsa.data.embedding import Embedder
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
from fsa.training import run_directory, run_lock

# Rows of a table: dicts, or a pandas DataFrame.
Rows = Sequence[Mapping[str, Any]] | Any


def fit(
    config: ConfigDict | Mapping[str, Any],
    workdir: epath.PathLike,
    *,
    choices: Rows | None = None,
    ratings: Rows | None = None,
    embedder: Embedder | None = None,
    reader: Reader | None = None,
    split_seed: int = preparation.SEED,
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
        vectors `[O, F]`, or a `fsa.data.language_model_embedder.LanguageModelEmbedder`.
      reader: how rows are read, by default `Reader()`; its `max_bad_share` says how
        many may be bad.
      split_seed: seed of the splits of people, see `fsa.data.splits.of`.

    Returns:
      The best model of the run: a `Ranker` for a reward model, a `Steerer` for a
      policy, a `LanguageModel` for a language model.

    Raises:
      InputError: if the config or the rows are not valid, or if the run directory
        belongs to another config, to other rows, to other splits or to another
        embedder. What `embedder` itself raises is not caught.
      Preempted: on SIGTERM, after the state is saved.
      Interrupted: on Ctrl-C, likewise; it is a KeyboardInterrupt.
    """
    config = configs.resolve(config, workdir=workdir)
    if embedder is not None:
        embedder = _open(config, embedder)
    tables = {"choices": choices, "ratings": ratings}
    given = {name: _as_rows(name, t) for name, t in tables.items() if t is not None}
    if given:
        with run_lock.hold(run_directory.locate(workdir)):
            config["task"]["path"] = processes.on_first(
                lambda: _write_data(
                    config, workdir, given, embedder, reader or Reader(), split_seed
                )
            )
    elif embedder is not None:
        items = dataset.load(config["task"]["path"], most_in_memory=0)
        embedding.open_same(embedder, items)
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


def _as_rows(name: str, table: Rows) -> list[Mapping[str, Any]]:
    """Returns the rows of a table in memory."""
    if hasattr(table, "to_dict"):  # A pandas DataFrame.
        table = table.to_dict("records")
    if isinstance(table, Mapping | str | pathlib.Path):
        raise InputError(
            f"`{name}`: give a list of dicts, one for each row, not "
            f"{type(table).__name__}; a file is prepared by fsa.data.preparation"
        )
    return list(table)


def _write_data(
    config: Config,
    workdir: epath.PathLike,
    tables: Mapping[str, list[Mapping[str, Any]]],
    embedder: Embedder | None,
    reader: Reader,
    split_seed: int,
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
        *([tables[name]] if name in tables else [] for name in ("choices", "ratings")),
        reader,
    )
    stored = manifest.read(folder) if manifest.exists(folder) else {}
    known = stored.get("sources", {})
    if (run_dir / "config.json").exists():
        if known != source.digests:
            raise InputError(
                f"`workdir`={run_dir}: a run on other data; use another `workdir`"
            )
        _check_split(stored, reader.split_by, split_seed)
    else:
        # Rows of an earlier call may be corrected; no other dataset is touched.
        prepared = preparation.prepare(
            folder,
            [source],
            split_by=reader.split_by,
            split_seed=split_seed,
            overwrite=bool(known) and known.keys() <= {"choices[0]", "ratings[0]"},
        )
        print(preparation.summary(prepared))
    if config["kind"] == REWARD_MODEL:
        _embed(folder, embedder)
    return str(folder)


def _open(config: Config, embedder: Embedder) -> Embedder:
    """Returns the embedder of a run with its folder opened, if it is one.

    Raises:
      InputError: as `embedding.load`; also if the run needs none.
    """
    if config["kind"] != REWARD_MODEL or "path" not in config["task"]:
        raise InputError(
            "`embedder`: leave it out, since a run of this config needs none"
        )
    return embedding.load(embedder)


def _check_split(stored: Mapping[str, Any], split_by: str, split_seed: int) -> None:
    """Refuses another split than a manifest records; older ones record none."""
    recorded = stored.get("split")
    if not recorded:
        return
    given = (
        ("split_seed", split_seed, recorded["seed"]),
        ("reader.split_by", split_by, recorded["by"]),
    )
    for name, asked, known in given:
        if asked != known:
            raise InputError(
                f"`{name}`={asked}: the run has {known}; give that, or use another "
                "`workdir`"
            )


def _embed(folder: pathlib.Path, embedder: Embedder | None) -> None:
    """Embeds the items of a dataset, unless they have features already.

    Raises:
      InputError: if they are texts and there is no embedder, if they are numbers and
        there is one, or if it is not the one that made their features.
    """
    data = dataset.load(folder, need_features=False, most_in_memory=0)
    if embedder is None:
        if not data.embedding:
            raise InputError("`embedder`: give one, since the options are texts")
        return
    if not data.embedding:
        embedding.embed_dataset(folder, embedder)
        return
    embedding.open_same(embedder, data)
