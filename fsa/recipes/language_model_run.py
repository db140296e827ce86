"""A run of a language model that is pretrained on the small corpus."""

import pathlib
import shutil
import tempfile

import jax
import numpy as np

from fsa.data.sources import corpus
from fsa.inference.saved_model import describe_language_model
from fsa.language import huggingface, transformer
from fsa.language.huggingface import architecture
from fsa.language.transformer import Transformer
from fsa.parallel.processes import is_first, on_first
from fsa.parallel.sharding import fetch
from fsa.recipes.config import Config
from fsa.recipes.run import AbstractRun, Run, shapes_of
from fsa.training import language_model_loss


def build(config: Config, init_key: jax.Array, valid_key: jax.Array) -> Run:
    """Builds the run of a checked config, see `fsa.recipes.kinds.Kind`."""
    del valid_key
    described = architecture.llama(
        **config["transformer"],
        vocab_size=len(corpus.WORDS),
        bos_token_id=corpus.BOS,
        eos_token_id=corpus.EOS,
        pad_token_id=corpus.PAD,
    )
    model = Transformer(**architecture.arguments(described))
    loss_fn = language_model_loss.make_loss(model, corpus.PAD)
    sequences = corpus.sequences(config["seed"], config["task"]["sequences"])
    held_out = corpus.sequences(config["seed"] + 1, config["eval"]["sequences"])
    batch_size = config["train"]["batch_size"]

    def make_examples(step, positions):
        first = step * batch_size
        epoch, start = divmod(first, len(sequences))
        rng = np.random.default_rng((config["seed"], epoch))
        order = rng.permutation(len(sequences))
        return sequences[np.take(order, start + positions, mode="wrap")]

    # The held-out sequences are an argument: XLA would take minutes to fold a constant
    # as large as that.
    score = jax.jit(lambda variables, tokens: loss_fn(variables, ((), tokens), None))

    def validate(state):
        loss, metrics = score(state.variables, held_out)
        return {"score": float(loss), "nll": float(metrics["nll"])}

    def finish(state, run_dir):
        folder, variables = pathlib.Path(run_dir) / "model", fetch(state.variables)
        on_first(lambda: _write(folder, described, variables))
        if is_first():
            print(f"Written: {folder}, a Hugging Face folder")

    return Run(
        variables=language_model_loss.init_variables(model, init_key),
        loss_fn=loss_fn,
        constants=(),
        make_examples=make_examples,
        validate=validate,
        sharding_rules=transformer.SHARDING_RULES,
        description=describe_language_model(config),
        finish=finish,
    )


def _write(folder: pathlib.Path, described, variables) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as source:
        corpus.write_tokenizer(source)
        huggingface.save(folder, described, variables, source=source)


def abstract(config: Config) -> AbstractRun:
    """Returns the shapes of the run of a checked config."""
    return shapes_of(build(config, *jax.random.split(jax.random.key(0))), config)
