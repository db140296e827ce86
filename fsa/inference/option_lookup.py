"""Finds the features of options, for a trained reward model.

An option is a vector, its features; the id or the text of an item of the run's dataset;
or any other text, which the dataset's embedder turns into features by the dataset's
template.

Shapes: N options, F features.
"""

import functools
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fsa.data import dataset, embedding
from fsa.data.dataset import Dataset
from fsa.data.embedding import Embedder
from fsa.data.tables import BadRow, as_numbers, name_of
from fsa.episodes import Options
from fsa.errors import InputError
from fsa.language.tokenization import Unusable, as_prompt
from fsa.training import run_data

# From so many new texts on, an embedding model shows a bar.
_MANY = 256
# Vectors of new texts that are kept, since the same options are often ranked again.
_KEPT = 4096


class BadOption(InputError):
    """An option that cannot be used.

    Attributes:
      argument: name of the argument that holds it.
      number: its position there, from 0.
      reason: why, and what to do.
      part: where the argument is a list of pairs, which of the two is meant, 0 or 1;
        None where it is a list of options.
    """

    def __init__(
        self, argument: str, number: int, reason: str, part: int | None = None
    ):
        """Makes the message of position and reason."""
        super().__init__(f"`{argument}`, option {number + 1}: {reason}")
        self.argument, self.number, self.reason = argument, number, reason
        self.part = part


class OptionLookup:
    """Turns options into features `[N, F]` and item indices `[N]`."""

    def __init__(
        self,
        num_features: int,
        data_path: str | None = None,
        embedder: Embedder | None = None,
        workdir: str | None = None,
    ):
        """Remembers where features come from; the dataset is read when it is needed.

        Args:
          num_features: F.
          data_path: folder of the run's dataset, if it has one.
          embedder: what embedded that dataset, for texts that are none of its items;
            also the folder of a language model, if that did.
          workdir: the directory of that run, if it has one.
        """
        self._num_features = num_features
        self._data_path = data_path
        self._embedder = embedder
        self._workdir = workdir
        self._embedded: dict[_New, np.ndarray] = {}

    def __call__(
        self, name: str, options: Sequence[Any] | np.ndarray, part: int | None = None
    ) -> Options:
        """Returns the features and items of N options; unknown items are -1.

        Args:
          name: name of the argument, for messages.
          options: N vectors `[F]`, ids, texts, or pairs (prompt, text).
          part: see `BadOption`.

        Raises:
          BadOption: if an option is unknown or does not fit.
          InputError: if the dataset of the run is missing or damaged, or the embedder
            is not the one that embedded it.
        """
        if self._embedder is not None:
            _ = self._opened
        items = np.full(len(options), -1, np.int32)
        features = np.zeros((len(options), self._num_features), np.float32)
        new: dict[int, _New] = {}
        for i, option in enumerate(options):
            try:
                found = self._find(option)
                if isinstance(found, _Known):
                    items[i] = found.item
                    features[i] = self._data.features[found.item]
                elif isinstance(found, _New):
                    new[i] = found
                else:
                    features[i] = self._vector(found)
            except (_Unfit, BadRow, Unusable) as reason:
                raise BadOption(name, i, str(reason), part) from None
        if new:
            vectors = self._embed(list(new.values()))
            for i, vector in zip(new, vectors, strict=True):
                try:
                    features[i] = self._vector(vector)
                except _Unfit as reason:
                    why = f"its embedding {reason}"
                    raise BadOption(name, i, why, part) from None
        return Options(features, items)

    def prompts(self, options: Sequence[Any] | np.ndarray) -> list[str | None]:
        """Returns the prompt of each of N options; None where it is not known.

        It is the one that is given with an option. Of an option without, it is that of
        the item with its id or text, where the dataset has several prompts.

        Args:
          options: options that were looked up before, so that each is known to fit.
        """
        return [self._prompt_of(option) for option in options]

    def _prompt_of(self, option: Any) -> str | None:
        if isinstance(option, tuple) and len(option) == 2 and _is_name(option[1]):
            return as_prompt(option[0])
        found = self._find(option)
        if not isinstance(found, _Known) or len(self._data.prompts) == 1:
            return None
        return self._data.prompts[self._data.item_prompt[found.item]]

    def _find(self, option: Any) -> "_Known | _New | Any":
        """Returns an item, a text to embed, or what should be a vector."""
        prompt = None
        if isinstance(option, tuple) and len(option) == 2 and _is_name(option[1]):
            prompt, option = as_prompt(option[0]), option[1]
            if not isinstance(prompt, str | None):
                raise _Unfit(f"the prompt {_short(prompt)} is not a text; give one")
        if not _is_name(option):
            return option
        text = option if isinstance(option, str) else name_of({"id": option}, "id")
        if not text and not isinstance(option, str):
            return option  # NaN, a gap in a table.
        if (prompt, text) in self._by_prompt:
            return _Known(self._by_prompt[prompt, text])
        prompts = self._prompts_of.get(text, ()) if prompt is None else ()
        by_text = {self._by_prompt[each, text] for each in prompts}
        by_id = self._with_id(option, text, prompt)
        if by_id and by_text - by_id:
            named = self._data.item_ids[min(by_text - by_id)]
            raise _Unfit(
                f"{_short(text)} is the text of item {_short(named)} and the id of "
                f"another item, {_short(text)}; give its `prompt`"
            )
        if len(by_text) > 1:
            raise _Unfit(
                f"{_short(text)} answers {len(by_text)} prompts of the dataset; give "
                "its `prompt`"
            )
        for item in by_text | by_id:
            return _Known(item)
        return self._new(prompt, text)

    def _with_id(self, option: Any, text: str, prompt: str | None) -> set[int]:
        """Returns the item that has an id, if it answers the prompt that is given."""
        for item_id in (text, name_of({"id": option}, "id")):
            if item_id in self._by_id:
                item = self._by_id[item_id]
                answered = self._data.prompts[self._data.item_prompt[item]]
                return {item} if not prompt or answered == prompt else set()
        return set()

    def _new(self, prompt: str | None, text: str) -> "_New":
        """Returns a new option, if it can be embedded."""
        if self._embedder is None:
            where = "" if prompt is None else " with that prompt"
            raise _Unfit(
                f"{_short(text)} is not in the dataset of the run{where}; give "
                f"`embedder`, or a list of {self._num_features} numbers"
                if self._data_path
                else f"{_short(text)} is a text; give a list of {self._num_features} "
                "numbers"
            )
        if prompt is None:
            prompts = self._data.prompts if self._data_path else ("",)
            if len(prompts) > 1 and embedding.uses_prompt(self._template):
                raise _Unfit(
                    f"{_short(text)} is new, and its features depend on what it "
                    "answers; give its `prompt`"
                )
            prompt = prompts[0]
        return _New(prompt, text)

    def _embed(self, options: "list[_New]") -> list[np.ndarray]:
        if len(self._embedded) > _KEPT:
            self._embedded.clear()
        new = [each for each in dict.fromkeys(options) if each not in self._embedded]
        if new:
            many = len(new) >= _MANY
            found = embedding.embed(new, self._opened, self._template, progress=many)
            self._embedded.update(zip(new, found, strict=True))
        return [self._embedded[each] for each in options]

    @functools.cached_property
    def _opened(self) -> Embedder:
        """The embedder, opened and compared once."""
        if self._data_path:
            return embedding.open_same(self._embedder, self._data)
        return embedding.open_any(self._embedder)

    @property
    def _template(self) -> str:
        return self._data.embedding.template if self._data_path else embedding.OPTION

    @functools.cached_property
    def _data(self) -> Dataset:
        if self._workdir:
            run_data.check_there(self._workdir, self._data_path)
        return dataset.load(self._data_path, most_in_memory=0)

    @functools.cached_property
    def _by_id(self) -> dict[str, int]:
        """Item indices by id."""
        if not self._data_path:
            return {}
        return {item_id: i for i, item_id in enumerate(self._data.item_ids)}

    @functools.cached_property
    def _by_prompt(self) -> dict[tuple[str, str], int]:
        """Item indices by prompt and text."""
        if not self._data_path:
            return {}
        data = self._data
        prompts = [data.prompts[prompt] for prompt in data.item_prompt]
        pairs = zip(prompts, data.texts, strict=True)
        return {pair: i for i, pair in enumerate(pairs)}

    @functools.cached_property
    def _prompts_of(self) -> dict[str, list[str]]:
        """The prompts that a text answers."""
        found: dict[str, list[str]] = {}
        for prompt, text in self._by_prompt:
            found.setdefault(text, []).append(prompt)
        return found

    def _vector(self, value: Any) -> np.ndarray:
        wanted = (
            f"give {self._num_features} finite numbers, as the model was trained on"
        )
        vector = as_numbers(value)
        if vector is None:
            raise _Unfit(f"{_short(value)} is not a list of numbers; {wanted}")
        with np.errstate(over="ignore"):
            vector = vector.astype(np.float32)
        if vector.shape != (self._num_features,):
            raise _Unfit(f"has shape {vector.shape}; {wanted}")
        if not np.isfinite(vector).all():
            raise _Unfit(f"has a number that is NaN or beyond 3e38; {wanted}")
        return vector


class _Known(NamedTuple):
    """An item of the dataset."""

    item: int


class _New(NamedTuple):
    """A text that is no item of the dataset."""

    prompt: str
    text: str


class _Unfit(Exception):
    """Why an option cannot be used."""


def _is_name(option: Any) -> bool:
    """Whether an option is a text, or a number as ids may be."""
    return isinstance(option, str) or (
        isinstance(option, numbers.Real) and not isinstance(option, bool)
    )


def _short(value: Any) -> str:
    try:
        shown = repr(value)
    except ValueError:  # Python shows no number of more than 4,300 digits.
        return "a number of too many digits"
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def is_prompted(option: Any) -> bool:
    """Whether an option is a text with what it answers: a pair (prompt, text)."""
    return isinstance(option, tuple) and len(option) == 2 and isinstance(option[1], str)
