"""Embeds responses by a language model, which is no sentence encoder.

A vector is the mean of the model's final hidden states over the tokens of a response
behind its prompt. Nothing taught these states to be near each other for texts of one
meaning, as a sentence encoder's are; they are what policies infer z from.

Shapes: I options, F features (the model's width).
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from fsa.errors import InputError
from fsa.language import huggingface
from fsa.language.language_model import LanguageModel, buckets_for
from fsa.language.poolings import MEAN
from fsa.language.scoring import embed_responses
from fsa.language.tokenization import Inseparable

# Longer prompts are refused, and longer responses are cut.
MAX_TOKENS = 2048
# What differs from digests of the same folder for other uses.
_WHAT = "mean of final hidden states of the response, float32"


class LanguageModelEmbedder:
    """A language model that turns (prompt, response) pairs into vectors.

    It computes in float32, so that a vector does not depend on what is embedded with
    it. It is loaded when it is used.

    Attributes:
      folder: its Hugging Face folder.
    """

    def __init__(self, folder: str | os.PathLike, mesh: Mesh | None = None):
        """Checks config, weights and tokenizer of a folder, and loads no weights.

        Args:
          folder: the folder.
          mesh: see `LanguageModel`.

        Raises:
          InputError: as `LanguageModel.load`.
        """
        self._mesh = mesh
        self.folder = pathlib.Path(folder)
        huggingface.check(self.folder)

    @property
    def name(self) -> str:
        """The name that datasets record."""
        return self.folder.resolve().name

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the files that vectors depend on, and of how they are computed."""
        files = huggingface.digest(self.folder)
        return hashlib.sha256(f"{_WHAT}\n{files}".encode()).hexdigest()

    def embed(
        self,
        options: Sequence[tuple[str, str]],
        template: str,
        *,
        progress: bool = False,
    ) -> np.ndarray:
        """Returns the vectors of (prompt, option) pairs, `[I, F]` float32.

        Args:
          options: I pairs.
          template: what is before {option} is the prompt, and the rest the response;
            both may hold {prompt}. White space between the two is written only for a
            model without a chat template.
          progress: whether to show a bar.

        Raises:
          InputError: for a template that has {option} not once; naming a prompt or
            response that cannot be used.
        """
        before, *rest = template.split("{option}")
        if len(rest) != 1:
            raise InputError(
                f"`template` {template!r}: has {{option}} {len(rest)} times; what is "
                "before it is the prompt, so give it once"
            )
        prompt_template = before.rstrip()
        language = dataclasses.replace(
            self._language,
            tokenization=dataclasses.replace(
                self._language.tokenization, separator=before[len(prompt_template) :]
            ),
        )
        pairs = [
            (
                prompt_template.format(prompt=prompt),
                option + rest[0].format(prompt=prompt),
            )
            for prompt, option in options
        ]
        try:
            table = language.pairs(pairs)
        except InputError as error:
            if not isinstance(error.__cause__, Inseparable) or before[-1:].isspace():
                raise
            raise InputError(
                f"{error}; does a space lack? Give `template`='{{prompt}} {{option}}'"
            ) from error
        return embed_responses(
            language.model,
            language.variables,
            table,
            buckets=buckets_for(table, ()),
            pooling=MEAN,
            mesh=self._mesh,
            progress=progress,
        )

    @functools.cached_property
    def _language(self) -> LanguageModel:
        limits = dict(max_prompt=MAX_TOKENS, max_response=MAX_TOKENS)
        return LanguageModel.load(
            str(self.folder), dtype="float32", mesh=self._mesh, **limits
        )
