"""Adds features by a language model: `fsa embed_lm --data=DIR --model=FOLDER`.

The model is a Hugging Face folder such as policies are made of; nothing is downloaded.
A vector is the mean of its final hidden states over the tokens of an option, behind the
prompt. That is no sentence embedding: use `fsa embed` where you have a
sentence-transformers model, and this to see what a policy of this model has to go by.

    fsa embed_lm --data=data/mine --model=FOLDER

All devices and processes share the work, as in `fsa evaluate`.
"""

from collections.abc import Sequence

from absl import flags

from fsa.commands import command_line
from fsa.data import embedding
from fsa.data.language_model_embedder import LanguageModelEmbedder
from fsa.parallel import examples

_DATA = flags.DEFINE_string("data", None, "A dataset.", required=True)
_MODEL = flags.DEFINE_string(
    "model", None, "Folder of the language model.", required=True
)
_TEMPLATE = flags.DEFINE_string(
    "template",
    embedding.RESPONSE,
    "Prompt and response: {option} begins the latter; \\n is a line end.",
)
_DEVICES = command_line.device_flags("1")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace existing features.")


def main(argv: Sequence[str]) -> None:
    """Embeds the items of a dataset and adds the features to it."""
    command_line.refuse_arguments(argv)
    mesh = examples.find_mesh(**_DEVICES.sizes())
    data = embedding.embed_dataset(
        _DATA.value,
        LanguageModelEmbedder(_MODEL.value, mesh),
        template=_TEMPLATE.value.replace("\\n", "\n"),
        overwrite=_OVERWRITE.value,
    )
    print(f"Embedded {len(data.texts):,} items of {_DATA.value} with {data.embedder}")
    print(f"next: fsa probe --data={_DATA.value}")
