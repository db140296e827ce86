"""Adds features by a sentence encoder: `fsa embed --data=DIR --model=FOLDER`.

    fsa embed --data=data/mine --model=FOLDER

The model is a sentence-transformers model in a local folder; nothing is downloaded.
Its weights have to be safetensors, and code that comes with it is not run. This needs
the extra `embed`, which installs PyTorch: run `pip install '.[embed]'` in the checkout
of fsa. A language model is no such model; see `fsa embed_lm`.
"""

from collections.abc import Sequence

from absl import flags

from fsa.commands import command_line
from fsa.data import embedding

_DATA = flags.DEFINE_string("data", None, "A dataset.", required=True)
_MODEL = flags.DEFINE_string("model", None, "Folder of the model.", required=True)
_TEMPLATE = flags.DEFINE_string(
    "template",
    embedding.OPTION,
    "Template of the text to embed, with {prompt} and {option}; \\n is a line end.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Number of texts at a time.", 1)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace existing features.")


def main(argv: Sequence[str]) -> None:
    """Embeds the items of a dataset and adds the features to it."""
    command_line.refuse_arguments(argv)
    data = embedding.embed_dataset(
        _DATA.value,
        _MODEL.value,
        template=_TEMPLATE.value.replace("\\n", "\n"),
        batch_size=_BATCH_SIZE.value,
        overwrite=_OVERWRITE.value,
    )
    print(f"Embedded {len(data.texts):,} items of {_DATA.value} with {data.embedder}")
    print(f"next: fsa probe --data={_DATA.value}")
