"""Measures greedy generation of a Hugging Face folder, by fsa or by transformers.

`python benchmarks/decode.py --model=FOLDER --by=fsa` prints a row of a table for each
batch size: tokens a second for prompts of 32 random tokens and 48 new ones, in
processor time, the best of `--rounds` after one that compiles. `--by=transformers` runs
in any environment that has PyTorch, absl and transformers. Run both in turns, with
`taskset -c 0` before the command; benchmarks/results/decode.md has the figures.
"""

import pathlib
import sys
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
from absl import app, flags

_MODEL = flags.DEFINE_string("model", None, "Folder of the model.", required=True)
_BY = flags.DEFINE_enum("by", "fsa", ["fsa", "transformers"], "What generates.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of weights.")
_BATCHES = flags.DEFINE_multi_integer("batch", [1, 16, 64], "Batch sizes.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of timing.", 1)

PROMPT, NEW = 32, 48


def by_fsa() -> tuple[int, Callable]:
    """Returns (V, a function that generates for prompts `[B, T]`)."""
    import jax

    from fsa.language import huggingface
    from fsa.language.generation import decoder, generate
    from fsa.language.transformer import unstacked

    model, variables = unstacked(*huggingface.load(_MODEL.value, dtype=_DTYPE.value))

    @jax.jit
    def run(variables, prompts):
        return generate(
            decoder(model, variables),
            prompts,
            np.ones(prompts.shape, bool),
            jax.random.key(0),
            max_new_tokens=NEW,
            temperature=0,
        )

    return model.vocab_size, lambda prompts: jax.block_until_ready(
        run(variables, prompts)
    )


def by_transformers() -> tuple[int, Callable]:
    """Returns what `by_fsa` does."""
    import torch
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        _MODEL.value, dtype=getattr(torch, _DTYPE.value)
    ).eval()

    def run(prompts):
        tokens = torch.tensor(prompts).long()
        # No token may end a text early, as in `by_fsa`, which has no stop tokens.
        with torch.inference_mode():
            model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
            )

    return model.config.vocab_size, run


def main(_):
    """Prints the rows."""
    vocab, run = by_fsa() if _BY.value == "fsa" else by_transformers()
    for batch in _BATCHES.value:
        prompts = np.random.default_rng(0).integers(3, vocab, (batch, PROMPT))
        run(prompts.astype(np.int32))
        seconds = []
        for _ in range(_ROUNDS.value):
            begin = time.process_time()
            run(prompts.astype(np.int32))
            seconds.append(time.process_time() - begin)
        rate = batch * NEW / min(seconds)
        print(f"| {_BY.value} | {_DTYPE.value} | {batch} | {rate:.1f} |", flush=True)


if __name__ == "__main__":
    app.run(main)
