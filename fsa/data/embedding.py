"""Embeds the items of a dataset with a sentence-transformers model, or a function.

The model is a local folder; nothing is downloaded. It alone needs the extra
`embed`, which installs PyTorch.
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fsa.data import dataset
from fsa.errors import InputError, missing_extra

# The default template: the option alone.
OPTION = "{option}"


# The folder of a sentence-transformers model, or a function that takes I texts and
# returns one vector for each, `[I, F]`.
Embedder = str | os.PathLike | Callable[[list[str]], Any]


def embed(texts: Sequence[str], embedder: Embedder, batch_size: int = 64) -> np.ndarray:
    """Embeds texts; a model shows its progress.

    Args:
      texts: I texts.
      embedder: a folder or a function.
      batch_size: number of texts that a model takes at a time.

    Returns:
      `[I, F]` float32.

    Raises:
      InputError: the extra is not installed, the folder holds no such model, or the
        function does not return one vector for each text.
    """
    if not callable(embedder):
        return _run_model(texts, os.fspath(embedder), batch_size)
    try:
        vectors = np.asarray(embedder(list(texts)), np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`embedder`: does not return vectors of equal length ({error})"
        ) from error
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise InputError(
            f"`embedder`: returns shape {vectors.shape} for {len(texts)} texts; return "
            "one vector for each"
        )
    return vectors


def name_of(embedder: Embedder) -> str:
    """Returns the name of an embedder that datasets record."""
    if callable(embedder):
        return getattr(embedder, "__name__", type(embedder).__name__)
    return pathlib.Path(embedder).resolve().name


def _run_model(texts: Sequence[str], folder: str, batch_size: int) -> np.ndarray:
    if not pathlib.Path(folder).is_dir():
        raise InputError(
            f"{folder}: no such folder; download a sentence-transformers model there "
            "first"
        )
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise missing_extra("embed", "embedding", error) from error
    try:
        model = SentenceTransformer(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder}: no sentence-transformers model ({error}); choose another folder"
        ) from error
    return model.encode(
        list(texts),
        batch_size=batch_size,
        show_progress_bar=True,
        convert_to_numpy=True,
    ).astype(np.float32)


def fill(template: str, prompt: str, option: str) -> str:
    """Returns the text to embed; braces in prompt and option stay as they are."""
    return template.format(prompt=prompt, option=option)


def check_template(template: str) -> None:
    """Checks that a template names known fields and shows the option.

    Raises:
      InputError: if it does not.
    """
    try:
        differ = fill(template, "", "a") != fill(template, "", "b")
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"`template` {template!r}: {error!r}; it may hold {{prompt}} and {{option}}"
        ) from error
    if not differ:
        raise InputError(f"`template` {template!r}: lacks {{option}}; add it")


def embed_dataset(
    path: str | pathlib.Path,
    embedder: Embedder,
    *,
    template: str = OPTION,
    batch_size: int = 64,
    overwrite: bool = False,
) -> dataset.Dataset:
    """Embeds the items of a dataset and adds the features to it on disk.

    Args:
      path: a dataset.
      embedder: folder of a sentence-transformers model, or a function.
      template: the text to embed for an item, with {prompt} and {option}.
      batch_size: texts at a time.
      overwrite: replace the features that it has.

    Returns:
      The dataset with its features.

    Raises:
      InputError: a bad template, no dataset, a dataset with features, or as `embed`.
    """
    check_template(template)
    data = dataset.load(path, need_features=False)
    if data.embedder and not overwrite:
        raise InputError(
            f"{path}: has features of {data.embedder}; pass `overwrite` to replace them"
        )
    texts = [
        fill(template, data.prompts[prompt], option)
        for prompt, option in zip(data.item_prompt, data.texts, strict=True)
    ]
    name = name_of(embedder)
    name = name if template == OPTION else f"{name} of {template!r}"
    return dataset.write_features(path, embed(texts, embedder, batch_size), name)
