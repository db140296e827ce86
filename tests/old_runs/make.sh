#!/bin/bash
# Makes the runs in this folder with the code that wrote the first format of runs.
#
#   git worktree add /tmp/old f732695 && cd /tmp/old && make .venv/ready
#   cd EMPTY_FOLDER && OLD=/tmp/old bash .../tests/old_runs/make.sh
#
# They are a reward model on ratings of made-up people, a language model of the small
# corpus, and a policy that steers it; each tiny, trained to its end, and used once.
set -euo pipefail
: "${OLD:?the checkout of the old commit}"
export PYTHONPATH=$OLD JAX_PLATFORMS=cpu
export XLA_FLAGS=--xla_cpu_use_fusion_emitters=false
run() { "$OLD/.venv/bin/python" -m "launch.$1" "${@:2}"; }

# People who like low or high numbers rate items; their features are the numbers.
"$OLD/.venv/bin/python" - <<'PYTHON'
import json
import random

import numpy as np

rng = random.Random(0)
items = [(f"item-{i}", i / 19) for i in range(20)]
np.save("vectors.npy", np.array([[x, x * x, 1 - x] for _, x in items], np.float32))
with open("ids.jsonl", "w") as file:
    file.writelines(json.dumps({"id": name}) + "\n" for name, _ in items)
with open("ratings.jsonl", "w") as file:
    for split, count in {"train": 6, "valid": 3, "test": 4}.items():
        for number in range(count):
            likes = (1, -1)[number % 2]
            for name, x in rng.sample(items, 14):
                row = {"user": f"{split}-{number}", "prompt": "", "item": name}
                row |= {"item_id": name, "value": likes * x, "split": split}
                file.write(json.dumps(row | {"group": ("high", "low")[number % 2]}) + "\n")
with open("context.jsonl", "w") as file:
    file.write(json.dumps({"chosen": "item-18", "rejected": "item-3"}) + "\n")
    file.write(json.dumps({"chosen": "item-12", "rejected": "item-9"}) + "\n")
with open("options.jsonl", "w") as file:
    file.writelines(json.dumps({"option": f"item-{i}"}) + "\n" for i in (0, 7, 13, 19))
PYTHON
run prepare --judgements=ratings.jsonl --vectors=vectors.npy --vector_ids=ids.jsonl \
  --embedder=numbers --out=data/people
run train --config="$OLD/experiments/choices.py:np-btl" --workdir=runs/reward_model \
  --config.task.path=data/people --config.task.train_on=judgements \
  --config.task.min_choices=3 --config.task.max_context=3 --config.task.num_targets=4 \
  --config.model.hidden=8 --config.model.latent_dim=2 --config.objective.num_samples=2 \
  --config.optimizer.warmup_steps=2 --config.train.steps=8 --config.train.batch_size=8 \
  --config.train.steps_per_call=2 --config.train.validate_every=4 \
  --config.eval.num_context='(0,2)' --config.eval.num_targets=3 \
  --config.eval.episodes_per_user=2 --config.eval.valid_episodes_per_user=2 \
  --config.eval.num_samples=4 --config.eval.num_resamples=20
run evaluate --workdir=runs/reward_model
run predict --workdir=runs/reward_model --context=context.jsonl \
  --options=options.jsonl --out=predicted.jsonl

run train --config="$OLD/experiments/policy/corpus.py:language" \
  --workdir=runs/language_model --config.task.sequences=64 --config.transformer.width=16 \
  --config.transformer.num_layers=2 --config.transformer.num_heads=4 \
  --config.transformer.num_kv_heads=2 --config.transformer.head_dim=6 \
  --config.transformer.mlp_width=20 --config.train.steps=8 --config.train.batch_size=8 \
  --config.train.steps_per_call=2 --config.train.validate_every=4 \
  --config.optimizer.warmup_steps=2 --config.eval.sequences=16
run sample --model=runs/language_model/model --prompts=corpus --separator=" " \
  --num_samples=4 --max_new_tokens=9 --out=samples.jsonl
run prepare --samples=samples.jsonl --attributes=corpus_formality \
  --users=train:4,valid:2,test:3 --num_choices=train:5,valid:5,test:5 --out=data/choices
run train --config="$OLD/experiments/policy/corpus.py:np-dpo" --workdir=runs/policy \
  --config.task.path=data/choices --config.language_model.path=runs/language_model/model \
  --config.task.max_context=3 --config.task.num_targets=2 --config.task.max_response=12 \
  --config.task.buckets='(20,)' --config.model.hidden=8 --config.model.latent_dim=3 \
  --config.policy.modulations='(("attention/out","low_rank(2)"),("mlp/down","scale"))' \
  --config.optimizer.warmup_steps=1 --config.optimizer.learning_rate=0.1 \
  --config.dpo.reward_steps=2 --config.train.steps=8 --config.train.batch_size=4 \
  --config.train.steps_per_call=2 --config.train.validate_every=4 \
  --config.eval.num_context='(0,2)' --config.eval.num_targets=3 \
  --config.eval.num_resamples=20 --config.eval.users_at_once=4 \
  --config.eval.writers_per_group=2 --config.eval.prompts_per_writer=2
run evaluate --workdir=runs/policy
"$OLD/.venv/bin/python" - <<'PYTHON'
import json

with open("samples.jsonl") as file:
    found = [json.loads(line) for line in file]
with open("person.jsonl", "w") as file:
    for better, worse in (found[0:2], found[4:6]):
        row = {"prompt": better["prompt"], "chosen": better["answer"]}
        file.write(json.dumps(row | {"rejected": worse["answer"]}) + "\n")
with open("prompts.jsonl", "w") as file:
    file.writelines(json.dumps({"prompt": found[i]["prompt"]}) + "\n" for i in (8, 12))
PYTHON
run steer --workdir=runs/policy --context=person.jsonl --prompts=prompts.jsonl \
  --max_new_tokens=9 --out=steered.jsonl

# Pictures, compiled programs and paths of the machine do not belong to the runs.
rm -rf runs/*/compiled runs/*/tensorboard runs/*/*.png
sed -i "s#$OLD/##" runs/*/run.json
"$OLD/.venv/bin/python" - <<'PYTHON'
import hashlib
import json
import pathlib

for step in pathlib.Path("runs").glob("*/checkpoints/*"):
    for note in step.rglob("commit_success.txt"):
        note.write_text("Checkpoint commit was successful\n")
    listed = json.loads((step / "manifest.json").read_text())
    for name in listed:
        listed[name] = hashlib.sha256((step / name).read_bytes()).hexdigest()
    (step / "manifest.json").write_text(json.dumps(listed, indent=1))
PYTHON
tar --sort=name --mtime=2026-01-01 --owner=0 --group=0 --numeric-owner -cJf runs.tar.xz *
