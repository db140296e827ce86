"""Reads or samples the prompts that a language model answers, and samples answers.

Each prompt is in one split, and its answers are too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fsa.data import columns, files, splits
from fsa.data.sources import corpus
from fsa.errors import InputError
from fsa.language.language_model import LanguageModel

# Many texts begin alike, so sampling stops after this many texts per opening asked for.
_ROUNDS = 20


def read_prompts(path: str, seed: int) -> dict[str, str]:
    """Reads prompts with their splits.

    Args:
      path: a table with a column `prompt` and, if wanted, `split`; or "corpus" for the
        prompts of the small language.
      seed: seed of the splits that the table does not give.

    Returns:
      Prompt -> split.

    Raises:
      InputError: if the table is missing or damaged, a prompt is empty or repeated, or
        a split is unknown.
    """
    if path == "corpus":
        drawn = corpus.split_prompts(seed)
        return {prompt: split for split, found in drawn.items() for prompt in found}
    found = {}
    for number, row in files.read_rows(path):
        columns.require("prompt", row, f"{path}, row {number}")
        prompt = columns.prompt_of(row, f"{path}, row {number}")
        split = row.get("split") or ""
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{path}, row {number}: prompt is empty; give a text")
        if prompt in found:
            raise InputError(f"{path}, row {number}: the prompt has an earlier row")
        if split not in ("", *splits.SPLITS):
            raise InputError(
                f"{path}, row {number}: split {split!r} is none of train, valid, test"
            )
        found[prompt] = split or splits.of(prompt, seed)
    if not found:
        raise InputError(f"{path}: no prompts; give one a row")
    return found


def splits_of(prompts: Sequence[str], seed: int) -> dict[str, str]:
    """Returns the split of each prompt, see `splits.of`: prompt -> split."""
    return {prompt: splits.of(prompt, seed) for prompt in prompts}


def sample_openings(
    language: LanguageModel, size: int, num_tokens: int, seed: int
) -> list[str]:
    """Samples different beginnings of texts that the model writes without a prompt.

    Each is cut to `num_tokens` tokens, then to full words: the last, which may be cut
    off, is dropped.

    Raises:
      InputError: if the model is a chat model, which writes only answers, if it has no
        start token, or if many texts have fewer than `size` different beginnings.
    """
    if language.tokenization.has_template:
        raise InputError("`openings`: this model answers chats; give `prompts` instead")
    found = {}
    for number in range(_ROUNDS):
        texts = language.write(
            [""] * size, max_new_tokens=num_tokens, seed=seed + number
        ).texts
        found |= dict.fromkeys(text.rpartition(" ")[0] for text in texts)
        found.pop("", None)
        if len(found) >= size:
            return list(found)[:size]
    raise InputError(
        f"`openings`={size}: {_ROUNDS * size} texts begin in {len(found)} different "
        "ways; ask for fewer or raise `opening_tokens`"
    )


def sample_answers(
    language: LanguageModel,
    prompts: Mapping[str, str],
    num_samples: int,
    **options: Any,
) -> list[dict[str, str]]:
    """Samples several answers to each prompt.

    Args:
      language: the language model.
      prompts: prompt -> split, as `read_prompts` and `splits_of` return them.
      num_samples: the number of answers to a prompt.
      **options: options of `LanguageModel.write`, such as `max_new_tokens`.

    Returns:
      A row for each answer, with `prompt`, `answer` and `split`; the answers to a
      prompt follow each other.

    Raises:
      InputError: if a prompt is empty or too long.
    """
    repeated = [prompt for prompt in prompts for _ in range(num_samples)]
    written = language.write(repeated, **options)
    return [
        {"prompt": prompt, "answer": answer, "split": prompts[prompt]}
        for prompt, answer in zip(repeated, written.texts, strict=True)
    ]
