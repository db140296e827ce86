"""Embeds options: those of a dataset, and new ones as these were.

What embeds is the folder of a sentence-transformers model (`sentence_encoder`), which
needs the extra `embed`; a language model (`language_model_embedder`); or any function.
Nothing is downloaded.

Shapes: I options, F features.
"""

import os
import pathlib
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fsa import folders
from fsa.data import dataset, manifest
from fsa.data.collect import GIVEN
from fsa.data.dataset import Dataset, Embedding
from fsa.data.language_model_embedder import LanguageModelEmbedder
from fsa.data.sentence_encoder import SentenceEncoder, is_one
from fsa.errors import InputError
from fsa.parallel import processes

# The default templates: the option alone; and, for a language model, behind its prompt.
OPTION, RESPONSE = "{option}", "{prompt}{option}"

# How many stored options are embedded again, to recognise another embedder.
_COMPARED = 32
# How far their vectors may be apart, as a share of what tells options apart (the spread
# of the stored vectors) and of a number itself: another batch size or machine changes
# the last digits.
_OF_SPREAD, _OF_NUMBER = 1e-2, 1e-6

# The folder of a sentence-transformers model; a function that takes I texts and returns
# one vector for each, `[I, F]`; or a language model.
Embedder = str | os.PathLike | Callable[[list[str]], Any] | LanguageModelEmbedder


def load(embedder: Embedder, batch_size: int = 64) -> Embedder:
    """Returns an embedder with the folder that is named opened and checked.

    Args:
      embedder: a folder, a function or a language model; the latter two are returned.
      batch_size: number of texts that a sentence encoder takes at a time.

    Raises:
      InputError: as `SentenceEncoder`; also for what is not an embedder.
    """
    if isinstance(embedder, str | os.PathLike):
        return SentenceEncoder(embedder, batch_size)
    if not callable(embedder) and not isinstance(embedder, LanguageModelEmbedder):
        raise InputError(
            f"`embedder`: give a folder or a function, not {type(embedder).__name__}"
        )
    return embedder


def open_any(embedder: Embedder) -> Embedder:
    """Returns an embedder opened, as `load`; also the folder of a language model.

    Raises:
      InputError: as `load` and `LanguageModelEmbedder`.
    """
    if isinstance(embedder, str | os.PathLike):
        folder = pathlib.Path(embedder)
        if (folder / "config.json").is_file() and not is_one(folder):
            embedder = LanguageModelEmbedder(folder)
    return load(embedder)


def open_same(embedder: Embedder, data: Dataset) -> Embedder:
    """Returns the embedder of a dataset opened, see `open_any`.

    Where a digest is not known, some of the dataset's options are embedded again.

    Args:
      embedder: as of `open_any`.
      data: with features.

    Raises:
      InputError: as `open_any`; also if it is not the one that made the features.
    """
    embedder = open_any(embedder)
    if data.embedding.name == GIVEN:
        raise InputError("`embedder`: leave it out, since the options are numbers")
    digest = digest_of(embedder)
    if digest and data.embedding.digest:
        same = digest == data.embedding.digest
    else:
        same = _agrees(embedder, data)
    if not same:
        raise InputError(
            f"`embedder`={name_of(embedder)}: not the one that made the features of "
            f"the dataset ({data.embedding.name}); use that one, unchanged"
        )
    return embedder


def _agrees(embedder: Embedder, data: Dataset) -> bool:
    """Whether an embedder gives the stored vectors of some options, evenly spread."""
    last = len(data.texts) - 1
    some = np.unique(np.linspace(0, last, _COMPARED).round().astype(int))
    pairs = _pairs(data)
    found = embed([pairs[i] for i in some], embedder, data.embedding.template)
    stored = data.features[some]
    spread = float(data.features.std(axis=0, dtype=np.float64).mean())
    return found.shape == stored.shape and np.allclose(
        found, stored, rtol=_OF_NUMBER, atol=_OF_SPREAD * spread
    )


def embed(
    options: Sequence[tuple[str, str]],
    embedder: Embedder,
    template: str = OPTION,
    *,
    progress: bool = False,
) -> np.ndarray:
    """Embeds options.

    Args:
      options: I pairs of a prompt and an option.
      embedder: as `load` returns it.
      template: the text to embed for an option, with {prompt} and {option}.
      progress: whether a model shows a bar.

    Returns:
      `[I, F]` float32.

    Raises:
      InputError: the extra is not installed, a model cannot be loaded, or a function
        does not return one vector for each text. What a function raises is not caught.
    """
    if isinstance(embedder, LanguageModelEmbedder):
        return embedder.embed(options, template, progress=progress)
    texts = [fill(template, prompt, option) for prompt, option in options]
    if isinstance(embedder, SentenceEncoder):
        return embedder(texts, progress=progress)
    returned = embedder(texts)
    try:
        with np.errstate(over="ignore"):
            vectors = np.asarray(returned, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
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
    """Returns the name of an opened embedder that datasets record."""
    names = ("name", "__name__")
    found = [getattr(embedder, name) for name in names if hasattr(embedder, name)]
    return str([*found, type(embedder).__name__][0])


def digest_of(embedder: Embedder) -> str:
    """Returns the digest of an opened embedder; "" for a function."""
    models = SentenceEncoder | LanguageModelEmbedder
    return embedder.digest if isinstance(embedder, models) else ""


def fill(template: str, prompt: str, option: str) -> str:
    """Returns the text to embed; braces in prompt and option stay as they are."""
    return template.format(prompt=prompt, option=option)


def uses_prompt(template: str) -> bool:
    """Returns whether a template shows the prompt."""
    return fill(template, "a", "") != fill(template, "b", "")


def check_template(template: str) -> None:
    """Checks that a template has the plain fields {prompt} and {option} alone.

    Others could ask for numbers of characters, such as {option:>1000000000}.

    Raises:
      InputError: if it has others, or lacks {option}.
    """
    may_hold = "it may hold {prompt} and {option}"
    try:
        fields = [field[1:] for field in string.Formatter().parse(template)]
    except ValueError as error:
        raise InputError(f"`template` {template!r}: {error}; {may_hold}") from error
    for name, specification, conversion in fields:
        plain = not specification and not conversion
        if name is not None and not (plain and name in ("prompt", "option")):
            raise InputError(f"`template` {template!r}: field {name!r}; {may_hold}")
    if "option" not in [name for name, *_ in fields]:
        raise InputError(f"`template` {template!r}: lacks {{option}}; add it")


def embed_dataset(
    path: str | pathlib.Path,
    embedder: Embedder,
    *,
    template: str | None = None,
    batch_size: int = 64,
    overwrite: bool = False,
) -> Dataset:
    """Embeds the items of a dataset and adds the features to it on disk.

    All processes of a run must call it; the first one writes.

    Args:
      path: a dataset.
      embedder: folder of a sentence-transformers model, a function or a language model.
      template: the text to embed for an item, with {prompt} and {option}; by default
        the option alone, and behind its prompt for a language model.
      batch_size: texts at a time.
      overwrite: replace the features that it has.

    Returns:
      The dataset with its features.

    Raises:
      InputError: a bad template, no dataset, a dataset with features, or as `load`,
        `embed` and `SentenceEncoder.check_weights`.
    """
    if template is None:
        is_language_model = isinstance(embedder, LanguageModelEmbedder)
        template = RESPONSE if is_language_model else OPTION
    check_template(template)
    data = dataset.load(path, need_features=False, most_in_memory=0)
    if data.embedding and not overwrite:
        raise InputError(
            f"{path}: has features of {data.embedder}; pass `overwrite` to replace them"
        )
    folder = pathlib.Path(path)
    replacing = "embedding rewrites the folder, which"
    manifest.check_free(folder, overwrite=True, replacing=replacing)
    room = "make room, or copy the dataset"
    processes.on_first(lambda: folders.check_writable(folder.resolve().parent, room))
    embedder = load(embedder, batch_size)
    if isinstance(embedder, SentenceEncoder):
        embedder.check_weights()
    vectors = embed(_pairs(data), embedder, template, progress=True)
    embedding = Embedding(name_of(embedder), template, digest_of(embedder))
    processes.on_first(lambda: _write(path, vectors, embedding))
    return dataset.with_features(data, vectors, embedding)


def _write(path: str | pathlib.Path, vectors: np.ndarray, embedding: Embedding) -> None:
    """Adds vectors to a dataset on disk."""
    dataset.write_features(path, vectors, embedding)


def _pairs(data: Dataset) -> list[tuple[str, str]]:
    """Returns the (prompt, option) of all items."""
    prompts = (data.prompts[i] for i in data.item_prompt)
    return list(zip(prompts, data.texts, strict=True))
