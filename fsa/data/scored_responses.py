"""Scores of a dataset's responses by a frozen language model, computed once.

For every item, a response to a prompt, these are its tokens, its log-probability under
the model (the reference of DPO) and its embedding. They are saved in the dataset's
directory, in a folder named by a digest of the model's files, the data and the options
of tokenisation, so that they are computed again if any of these changes.

Shapes: I items, F features, T tokens.
"""

import dataclasses
import hashlib
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds

from fsa.data import manifest, records
from fsa.data.dataset import Dataset
from fsa.data.users import UserTable
from fsa.errors import InputError
from fsa.folders import complete_or_absent
from fsa.language.token_table import TokenTable
from fsa.language.tokenization import Tokenization, Unusable
from fsa.parallel.processes import ask_largest, first_goes_ahead

_LOG = logging.getLogger(__name__)

_RECORD = {
    "tokens": tfds.features.Tensor(shape=(None,), dtype=np.int32),
    "start": tfds.features.Scalar(np.int32),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Responses:
    """Tokens of all items and their scores by the frozen model.

    Attributes:
      tokens: the tokens of each item.
      log_prob: `[I]` float32, log pi_ref(response | prompt), summed over tokens, nats.
      features: `[I, F]` float32, embeddings of the responses.
      left_out: reason -> number of items that have no tokens.
      key: digest of the model, the data and the tokenisation.
    """

    tokens: TokenTable
    log_prob: np.ndarray
    features: np.ndarray
    left_out: dict[str, int]
    key: str

    @property
    def usable(self) -> np.ndarray:
        """`[I]`, whether an item has tokens."""
        return self.tokens.length > 0

    def differ(self, items: np.ndarray) -> np.ndarray:
        """Returns whether the tokens of two items `[..., 2]` differ, `[...]`."""
        kinds = self.tokens.kinds
        return kinds[items[..., 0]] != kinds[items[..., 1]]


def tokenize(
    data: Dataset, tokenization: Tokenization
) -> tuple[TokenTable, dict[str, int]]:
    """Tokenizes all items, and counts those left out by reason.

    Raises:
      InputError: the tokenizer cannot be used, or no item is left.
    """
    items, left_out = [], {}
    for prompt, text in zip(data.item_prompt, data.texts, strict=True):
        try:
            before, after = tokenization.pair(data.prompts[prompt], text)
        except Unusable as error:
            left_out[str(error)] = left_out.get(str(error), 0) + 1
            items.append(([], 0))
        else:
            items.append(([*before, *after], len(before)))
    if len(items) == sum(left_out.values()):
        raise InputError(f"none of {len(items)} responses can be used: {left_out}")
    return TokenTable.of(items), left_out


def embedded(data: Dataset, responses: Responses) -> Dataset:
    """Returns a dataset with the features of its responses.

    Only choices between two responses that have tokens, which differ, are kept.
    """

    def of(table: UserTable) -> UserTable:
        items = np.stack([table.chosen.flat, table.rejected.flat], axis=-1)
        kept = responses.usable[items].all(-1) & responses.differ(items)
        return dataclasses.replace(
            table, chosen=table.chosen.keep(kept), rejected=table.rejected.keep(kept)
        )

    users = {split: of(table) for split, table in data.users.items()}
    return dataclasses.replace(data, features=responses.features, users=users)


def obtain(
    path: str | pathlib.Path,
    data: Dataset,
    tokenization: Tokenization,
    score: Callable[[TokenTable, pathlib.Path | None], tuple[np.ndarray, np.ndarray]],
    *,
    model_digest: str,
    options: Mapping[str, Any],
) -> Responses:
    """Reads the scores that were computed before, or computes and writes them.

    All processes must call it, since all take part in `score`.

    Args:
      path: the directory of the dataset.
      data: the dataset.
      tokenization: how items become tokens.
      score: computes log-probabilities `[I]` and features `[I, F]`. It is given a
        folder for what it has computed, so that it can go on after an interruption;
        None where there are several processes.
      model_digest: digest of the frozen model and its tokenizer.
      options: everything else that the result depends on, JSON.

    Raises:
      InputError: as `tokenize`, or for scores that are not finite, or if the directory
        cannot be written.
    """
    content = {
        "model": model_digest,
        "data": manifest.read(pathlib.Path(path))["files"],
        "tokenization": {
            field.name: getattr(tokenization, field.name)
            for field in dataclasses.fields(tokenization)
            if field.name != "tokenizer" and not _is_new(tokenization, field.name)
        },
        **options,
    }
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    folder = pathlib.Path(path) / f"{manifest.RESULTS}{key}"
    # Processes may share a disk or have one each; if one lacks the scores, all compute.
    with first_goes_ahead():
        lacks = not _is_readable(folder)
    if ask_largest(lacks)():
        table, left_out = tokenize(data, tokenization)
        # Several processes may not have the same files, and stop together.
        kept = folder.with_suffix(manifest.PART) if jax.process_count() == 1 else None
        log_prob, features = score(table, kept)
        usable = table.length > 0
        broken = ~(np.isfinite(log_prob) & np.isfinite(features).all(1)) & usable
        if broken.any():
            _forget(kept)
            raise InputError(
                f"the model's scores of {broken.sum()} responses are NaN or infinite, "
                f"the first of item {data.item_ids[np.argmax(broken)]!r}; check its "
                "weights or load them in float32"
            )
        found = Responses(table, log_prob, features, left_out, key)
        with first_goes_ahead():
            _write(folder, found)
            _forget(kept)
        # Not the scores on this disk, which may be older and differ in their last bits.
        return found
    return _read(folder, key)


def _forget(kept: pathlib.Path | None) -> None:
    """Deletes the folder of what was computed until now, if there is one."""
    if kept:
        shutil.rmtree(kept, ignore_errors=True)


def _is_new(tokenization: Tokenization, name: str) -> bool:
    """Returns whether a field is one that older versions lacked, and has no effect."""
    return name == "template_arguments" and not tokenization.template_arguments


def _is_readable(folder: pathlib.Path) -> bool:
    """Returns whether saved scores can be read; removes a damaged folder."""
    if not folder.exists():
        return False
    try:
        manifest.read(folder)
    except InputError as error:
        _LOG.warning("%s: computed again", error)
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def _write(folder: pathlib.Path, responses: Responses) -> None:
    """Writes scores unless they are there; other processes may write at once."""
    if _is_readable(folder):
        return
    try:
        _write_new(folder, responses)
    except InputError:
        if not _is_readable(folder):
            raise


def _write_new(folder: pathlib.Path, responses: Responses) -> None:
    table = responses.tokens
    rows = [
        {"tokens": table[item], "start": start}
        for item, start in enumerate(table.start)
    ]
    with complete_or_absent(folder) as new:
        records.write(new, "tokens", _RECORD, {"tokens": rows})
        np.save(new / "log_prob.npy", responses.log_prob.astype(np.float32))
        np.save(new / "features.npy", responses.features.astype(np.float32))
        manifest.write(new, {"left_out": responses.left_out})


def _read(folder: pathlib.Path, key: str) -> Responses:
    left_out = manifest.read(folder)["left_out"]
    rows = records.read(folder, "tokens", "tokens")
    return Responses(
        TokenTable.of([(row["tokens"], row["start"][0]) for row in rows]),
        np.load(folder / "log_prob.npy"),
        np.load(folder / "features.npy"),
        left_out,
        key,
    )
