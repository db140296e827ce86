"""Sentence encoders: sentence-transformers models in local folders.

Nothing is downloaded, and no code or pickle of a folder is run: its weights have to be
safetensors, and its modules those of sentence-transformers.

Shapes: I texts, F features.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import safetensors

from fsa import bars, digests, installation, json_files
from fsa.errors import InputError, missing_extra

# A small model that many use.
_EXAMPLE = "sentence-transformers/all-MiniLM-L6-v2"
_MODULES, _ROUTERS = "modules.json", "router_config.json"
# A type of another package would be imported from the folder, or from where it is run.
_PACKAGE = "sentence_transformers"
_OWN_TYPES = f"{_PACKAGE}."
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")
# Of a module's folder, the files that vectors depend on.
_COUNTED = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
# How many batches are embedded together, sorted by length, before the bar moves.
_BATCHES = 8
# Weights of BERT's pooler, which no sentence encoder uses and some lack.
_UNUSED = "pooler."


class SentenceEncoder:
    """A sentence-transformers model that turns texts into vectors, loaded when used.

    Attributes:
      folder: its folder.
    """

    def __init__(self, folder: str | os.PathLike, batch_size: int = 64):
        """Checks the files of a folder, and loads nothing.

        Args:
          folder: the folder.
          batch_size: number of texts at a time.

        Raises:
          InputError: for no folder, or one that holds no sentence encoder, code of its
            own, no tokenizer, or weights that are missing, damaged or pickled.
        """
        self.folder = pathlib.Path(folder)
        self._batch_size = batch_size
        for module, kind in _modules(self.folder):
            _check_files(module, kind)

    @property
    def name(self) -> str:
        """The name that datasets record."""
        return self.folder.resolve().name

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of weights, tokenizer and settings; other files may come and go."""
        folders = {self.folder, *(module for module, _ in _modules(self.folder))}
        names = sorted(
            path.relative_to(self.folder).as_posix()
            for module in folders
            for pattern in _COUNTED
            for path in module.glob(pattern)
            if path.is_file() and not path.name.startswith(".")
        )
        found = digests.of_named(self.folder, names)
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    def __call__(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Returns the vectors of I texts, `[I, F]` float32.

        Raises:
          InputError: if the extra is not installed, or the model cannot be loaded.
        """
        vectors, block = [], _BATCHES * self._batch_size
        with bars.Bar(len(texts), "Embedding", "text", shown=progress) as bar:
            bar.say("loading the model")
            encode = functools.partial(
                self._model.encode,
                batch_size=self._batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
            bar.say("")
            for first in range(0, max(len(texts), 1), block):
                some = list(texts[first : first + block])
                vectors.append(encode(some))
                bar.advance(len(some))
        return np.concatenate(vectors).astype(np.float32)

    def check_weights(self) -> None:
        """Loads the model, and compares what its config asks for with its weights.

        Raises:
          InputError: naming a weight that the files lack, which would be random.
        """
        # A router's own modules, which are listed last, are not compared.
        for (folder, _), module in zip(
            _modules(self.folder), self._model, strict=False
        ):
            loaded = getattr(module, "auto_model", None)
            if loaded is None:
                continue  # Other modules refuse files that lack a weight.
            with _quiet():
                _, found = type(loaded).from_pretrained(
                    folder,
                    config=loaded.config,
                    output_loading_info=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                )
            missing = [key for key in found["missing_keys"] if _UNUSED not in key]
            if missing:
                raise InputError(
                    f"{self.folder}: the weights lack {min(missing)}, and "
                    f"{len(missing)} in all, of what config.json asks for; take both "
                    "from one model"
                )

    @functools.cached_property
    def _model(self) -> Any:
        os.environ["HF_HUB_OFFLINE"] = "1"
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise missing_extra("embed", "embedding", error) from error
        try:
            with _quiet():
                return SentenceTransformer(
                    str(self.folder),
                    local_files_only=True,
                    trust_remote_code=False,
                    model_kwargs={"use_safetensors": True},
                )
        # What a damaged folder raises has no common class.
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"{self.folder}: sentence-transformers cannot load it: {reason}"
            ) from error


def is_one(folder: str | os.PathLike) -> bool:
    """Returns whether a folder is one of sentence-transformers, sound or not."""
    return (pathlib.Path(folder) / _MODULES).is_file()


def _install() -> str:
    """Returns how to install the extra if it is not there, to be followed by more."""
    if importlib.util.find_spec(_PACKAGE):
        return ""
    return f"install the extra by {installation.command_of('embed')}, then "


def _modules(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    """Yields the folder and the type of each module.

    Raises:
      InputError: if there are none, or one has code of its own.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; {_install()}download a sentence-transformers "
            f"model there, as by: hf download {_EXAMPLE} --local-dir={folder}"
        )
    if not is_one(folder):
        raise InputError(
            f"{folder}: no sentence-transformers model, which has a {_MODULES}; name "
            "another folder, or embed by a language model with fsa embed_lm"
        )
    try:
        found = [
            (folder / module["path"], module["type"])
            for module in json_files.read(folder / _MODULES)
        ]
        for config in folder.rglob(_ROUTERS):
            kinds = json_files.read(config)["types"]
            found += [(config.parent / name, kind) for name, kind in kinds.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / _MODULES}: damaged; copy it again") from error
    for module, kind in found:
        if not isinstance(kind, str) or not kind.startswith(_OWN_TYPES):
            raise InputError(
                f"{folder}: {kind} is code of the model's own, which is not run; name "
                "a model of sentence-transformers' own modules"
            )
        yield module, kind


def _check_files(module: pathlib.Path, kind: str) -> None:
    """Raises InputError unless the files of a module are there and sound."""
    weights = sorted(module.glob("*.safetensors"))
    pickles = [path for pattern in _PICKLES for path in module.glob(pattern)]
    is_transformer = kind.endswith("Transformer")
    if (module / "adapter_config.json").is_file():
        raise InputError(f"{module}: holds an adapter; merge it into its model first")
    if pickles and not weights:
        raise InputError(
            f"{pickles[0]}: pickled weights can run code; convert them to safetensors"
        )
    if is_transformer and not weights:
        raise InputError(f"{module}: has no *.safetensors; copy the model's weights")
    if is_transformer and not any((module / name).is_file() for name in _TOKENIZERS):
        raise InputError(
            f"{module}: has no tokenizer.json; copy the model's tokenizer there"
        )
    for path in weights:
        try:
            with safetensors.safe_open(path, "np"):
                pass
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"{path}: damaged ({error}); copy it again") from error


@contextlib.contextmanager
def _quiet():
    """Keeps transformers' bar and report of loading from the screen."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
