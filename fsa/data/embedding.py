"""Embeds the items of a dataset with a sentence-transformers model.

The model is a local folder; nothing is downloaded. This module alone needs the extra
`pip install fsa[embed]`, which installs PyTorch.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from fsa.data import dataset
from fsa.errors import InputError

# The default template: the option alone.
OPTION = "{option}"


def embed(texts: Sequence[str], folder: str, batch_size: int) -> np.ndarray:
    """Embeds texts, showing progress.

    Args:
      texts: I texts.
      folder: folder of a sentence-transformers model.
      batch_size: number of texts at a time.

    Returns:
      `[I, F]` float32.

    Raises:
      InputError: the extra is not installed, or the folder holds no such model.
    """
    if not pathlib.Path(folder).is_dir():
        raise InputError(
            f"{folder}: no such folder; download a sentence-transformers model there "
            "first"
        )
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            f"embedding takes an extra: pip install fsa[embed] ({error})"
        ) from error
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
    folder: str,
    *,
    template: str = OPTION,
    batch_size: int = 64,
    overwrite: bool = False,
) -> dataset.Dataset:
    """Embeds the items of a dataset and adds the features to it on disk.

    Args:
      path: a dataset.
      folder: of a sentence-transformers model.
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
    name = pathlib.Path(folder).resolve().name
    embedder = name if template == OPTION else f"{name} of {template!r}"
    return dataset.write_features(path, embed(texts, folder, batch_size), embedder)
