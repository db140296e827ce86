"""Measures what it saves that texts which end make room for others.

`python benchmarks/refill.py --model=FOLDER` lets a language model answer prompts,
`--rows` at a time, until each answer ends by itself or has `--max_new_tokens`: once
batch after batch, each of which takes as long as its longest answer, and once by
`LanguageModel.write`, which refills rows. The texts differ by their draws alone.
Seconds are processor time, after a first run that compiles; they are printed.
`taskset -c 0` before the command restricts it to one core.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import app, flags

from fsa.data import files
from fsa.language.language_model import LanguageModel

_MODEL = flags.DEFINE_string("model", None, "Folder of the model.", required=True)
_PROMPTS = flags.DEFINE_string(
    "prompts", "experiments/policy/prompts.jsonl", "Table of prompts; '' for none."
)
_TEXTS = flags.DEFINE_integer("texts", 64, "Number of answers.", 1)
_ROWS = flags.DEFINE_integer("rows", 16, "Answers written at a time.", 1)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "Most tokens.", 1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of weights.")
_ROUNDS = flags.DEFINE_integer("rounds", 1, "Rounds of timing.", 1)


def main(_):
    """Prints tokens a second of both, round by round."""
    language = LanguageModel.load(
        _MODEL.value, dtype=_DTYPE.value, examples_at_once=_ROWS.value
    )
    prompts = [""] * _TEXTS.value
    if _PROMPTS.value:
        found = [row["prompt"] for _, row in files.read_rows(_PROMPTS.value)]
        prompts = found[: _TEXTS.value]
    options = dict(max_new_tokens=_MAX_NEW_TOKENS.value)

    def static():
        size = _ROWS.value
        batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        return [
            language.write(batch, **options, seed=seed)
            for seed, batch in enumerate(batches)
        ]

    def refilled():
        return [language.write(prompts, **options)]

    for number in range(1 + _ROUNDS.value):
        for write in (refilled, static):
            begin = time.process_time()
            tables = [written.table for written in write()]
            seconds = time.process_time() - begin
            tokens = sum(int((table.length - table.start).sum()) for table in tables)
            rate = f"{tokens / seconds:.1f} tokens/s, {tokens} tokens, {seconds:.1f} s"
            print("warm" if number else "first", write.__name__, rate, flush=True)


if __name__ == "__main__":
    app.run(main)
