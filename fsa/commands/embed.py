"""Embeds the items of a data set: `python -m launch.embed --data=DIR --model=FOLDER`.

The model is a sentence-transformers model in a local folder; nothing is fetched. It
takes the extra `pip install fsa[embed]`, which brings PyTorch; nothing else does.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from fsa.commands import command_line
from fsa.data import dataset
from fsa.errors import InputError

_OPTION = "{option}"

_DATA = flags.DEFINE_string("data", None, "A store.", required=True)
_MODEL = flags.DEFINE_string("model", None, "Folder of the model.", required=True)
_TEMPLATE = flags.DEFINE_string(
    "template", _OPTION, "Text to embed, of {prompt} and {option}; \\n is a line end."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Texts at a time.", 1)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace features that are there.")


def embed(texts: Sequence[str], model_folder: str, batch_size: int) -> np.ndarray:
    """Embeds texts, showing progress.

    Args:
      texts: I texts.
      model_folder: of a sentence-transformers model.
      batch_size: texts at a time.

    Returns:
      `[I, F]` float32.

    Raises:
      InputError: the extra is not installed, or the folder holds no such model.
    """
    if not pathlib.Path(model_folder).is_dir():
        raise InputError(
            f"--model={model_folder}: no such folder; fetch a sentence-transformers "
            "model first, this never does"
        )
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            f"embedding takes an extra: pip install fsa[embed] ({error})"
        ) from error
    try:
        model = SentenceTransformer(model_folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"--model={model_folder}: no sentence-transformers model: {error}"
        ) from error
    return model.encode(
        list(texts),
        batch_size=batch_size,
        show_progress_bar=True,
        convert_to_numpy=True,
    ).astype(np.float32)


def fill(template: str, prompt: str, option: str) -> str:
    """The text to embed; braces inside of prompt and option stay as they are."""
    return template.format(prompt=prompt, option=option)


def _check_template(template: str) -> None:
    try:
        differ = fill(template, "", "a") != fill(template, "", "b")
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"--template={template}: {error!r}; it may hold {{prompt}} and {{option}}"
        ) from error
    if not differ:
        raise InputError(f"--template={template}: lacks {{option}}; add it")


def main(argv: Sequence[str]) -> None:
    """Embeds what a store holds and adds the features to it."""
    command_line.refuse_arguments(argv)
    template = _TEMPLATE.value.replace("\\n", "\n")
    _check_template(template)
    data = dataset.load(_DATA.value, need_features=False)
    if data.embedder and not _OVERWRITE.value:
        raise InputError(
            f"{_DATA.value}: has features of {data.embedder}; pass --overwrite to "
            "replace them"
        )
    texts = [
        fill(template, data.prompts[prompt], option)
        for prompt, option in zip(data.item_prompt, data.texts, strict=True)
    ]
    vectors = embed(texts, _MODEL.value, _BATCH_SIZE.value)
    name = pathlib.Path(_MODEL.value).resolve().name
    embedder = name if template == _OPTION else f"{name} of {template!r}"
    dataset.write_features(_DATA.value, vectors, embedder)
    print(f"Embedded {len(texts):,} items of {_DATA.value} with {embedder}")


if __name__ == "__main__":
    command_line.run(main)
