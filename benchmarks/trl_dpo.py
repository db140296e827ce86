"""Runs steps of the DPO trainer of Hugging Face TRL, one for each line on stdin.

`dpo.py` starts it under a Python with trl and peft; it imports nothing of fsa. It
trains LoRA on the model and the tokens of the pairs in `--folder`, with reference
log-probs computed before training, and without recomputing activations. It writes one
line when it is ready, and its processor time at the end of each step; all other output
goes to stderr.
"""

import argparse
import os
import sys
import time

import numpy as np
import peft
import tokenizers
import torch
import transformers
import trl
from datasets import Dataset, concatenate_datasets


class OnRequest(transformers.TrainerCallback):
    """Waits for a line before each step, and writes one after it."""

    def __init__(self, lines, ready: str):
        """Takes the file `lines` to write to, and its first line, `ready`."""
        self._lines, self._ready = lines, ready

    def on_train_begin(self, *args, **kwargs):
        """Writes the first line."""
        print(self._ready, file=self._lines, flush=True)

    def on_step_begin(self, *args, **kwargs):
        """Waits for a line; ends the process when there are no more."""
        if not sys.stdin.readline():
            os._exit(0)

    def on_step_end(self, *args, **kwargs):
        """Writes the processor time so far, when the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print(time.process_time(), file=self._lines, flush=True)


def collator(tokens: np.ndarray, start: np.ndarray, stop: np.ndarray):
    """Makes the only batch, in the trainer's order: all chosen, then all rejected.

    It is padded to its longest sequence, as the trainer's own collator does.

    Args:
      tokens: `[pairs, 2, length]`.
      start: `[pairs, 2]`, position of each response's first token.
      stop: `[pairs, 2]`, the position after its last token.
    """

    def in_order(x):
        return torch.from_numpy(np.concatenate([x[:, 0], x[:, 1]]).astype(int))

    at = torch.arange(tokens.shape[-1])
    real = (at < in_order(stop)[:, None]).long()
    batch = {
        "input_ids": in_order(tokens),
        "attention_mask": real,
        "completion_mask": real * (at >= in_order(start)[:, None]),
    }

    def collate(pairs):
        names = [n for n in ("ref_chosen_logps", "ref_rejected_logps") if n in pairs[0]]
        return batch | {n: torch.tensor([pair[n] for pair in pairs]) for n in names}

    return collate


def word_tokenizer(vocab_size: int) -> transformers.PreTrainedTokenizerFast:
    """Makes a tokenizer, which the trainer asks for and the batch does not need."""
    words = {f"w{i}": i for i in range(vocab_size)}
    model = tokenizers.models.WordLevel(words, unk_token="w0")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), eos_token="w1", pad_token="w0"
    )


def main():
    """Trains until there are no more lines to read."""
    parser = argparse.ArgumentParser()
    for name in ("folder", "maps"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--rank", type=int)
    for name in ("beta", "nll_weight", "learning_rate"):
        parser.add_argument(f"--{name}", type=float)
    args = parser.parse_args()
    # What libraries print must not appear among the lines that `dpo.py` reads.
    lines, sys.stdout = sys.stdout, sys.stderr
    with np.load(os.path.join(args.folder, "batch.npz")) as file:
        tokens, reference = file["tokens"], file["reference"]
        start, stop = file["start"], file["stop"]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        os.path.join(args.folder, "model"), dtype="auto", trust_remote_code=False
    )
    low = model.dtype == torch.bfloat16
    config = trl.DPOConfig(
        output_dir=os.path.join(args.folder, "out"),
        per_device_train_batch_size=len(tokens),
        max_steps=10**6,
        beta=args.beta,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, args.nll_weight],
        learning_rate=args.learning_rate,
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,
        bf16=low,
        max_length=None,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    lora = peft.LoraConfig(
        r=args.rank,
        lora_alpha=args.rank,
        lora_dropout=0.0,
        target_modules=args.maps.split(","),
    )
    pairs = [{"prompt": "w2", "chosen": "w3", "rejected": "w4"}] * len(tokens)
    trainer = trl.DPOTrainer(
        model,
        args=config,
        train_dataset=Dataset.from_list(pairs),
        data_collator=collator(tokens, start, stop),
        processing_class=word_tokenizer(model.config.vocab_size),
        peft_config=lora,
    )
    stored = trainer.train_dataset
    theirs = np.stack([stored["ref_chosen_logps"], stored["ref_rejected_logps"]], -1)
    gap = np.abs(theirs / reference - 1).max()
    if gap > (2e-2 if low else 1e-4):
        sys.exit(
            f"reference log-probs differ by {gap:.1e} of theirs: not the same model"
        )
    versions = [f"{m.__name__} {m.__version__}" for m in (trl, peft, torch)]
    threads = f"{torch.get_num_threads()} threads"
    same = f"its reference log-probs are ours to {gap:.0e}"
    said = f"{', '.join(versions)}, {threads}; {same}"
    trainer.add_callback(OnRequest(lines, said))
    # Long, so that no step includes the end of an epoch.
    trainer.train_dataset = concatenate_datasets([stored] * 1000)
    trainer.train()


if __name__ == "__main__":
    main()
