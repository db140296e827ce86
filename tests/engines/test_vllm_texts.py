"""vLLM writes, with the adapters of several people in one batch, what fsa writes."""

import json

import numpy as np
import policies
import pytest

from fsa.data.sources import corpus
from fsa.inference.adapter_folders import NOBODY, write_adapters
from fsa.language.huggingface import architecture

pytestmark = pytest.mark.engine

# vLLM's attention on CPUs takes heads of 32 and more.
SMALL = architecture.llama(
    **{**policies.SIZES, "head_dim": 32},
    vocab_size=len(corpus.WORDS),
    bos_token_id=corpus.BOS,
    eos_token_id=corpus.EOS,
    pad_token_id=corpus.PAD,
)
LOW_RANKS = (
    ("attention/query", "low_rank(2)"),
    ("attention/out", "low_rank(8)"),
    ("mlp/down", "low_rank(8)"),
)
NEW_TOKENS, LEAST = 48, 30
THEIRS = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
if __name__ == "__main__":
    base, adapters, out = sys.argv[1:]
    asked = json.load(sys.stdin)
    model = LLM(
        base, dtype="float32", max_model_len=256, enforce_eager=True,
        enable_lora=True, max_lora_rank=8, max_loras=len(asked["names"]),
        gpu_memory_utilization=0.2,
    )
    options = SamplingParams(
        temperature=0, max_tokens=asked["tokens"], stop_token_ids=asked["stop"],
    )
    written = model.generate(
        [{"prompt_token_ids": asked["prompt"]}] * len(asked["names"]), options,
        lora_request=[
            LoRARequest(name, number, f"{adapters}/{name}")
            for number, name in enumerate(asked["names"], 1)
        ],
    )
    tokens = [list(text.outputs[0].token_ids) for text in written]
    json.dump(tokens, open(out, "w"))
"""


@pytest.fixture
def small(tmp_path):
    return policies.write_language_model(tmp_path / "small", described=SMALL)


def corpus_choices():
    answers = [a for _, a in corpus.texts(1, 60) if len(a.split()) < 10]
    return "review the novel :", [
        ("review the novel :", *answers[i : i + 2]) for i in (0, 2, 4)
    ]


def chat_choices():
    prompt = "Explain how bread rises."
    pairs = [
        ("Yeast.", "Yeast eats sugar, and the gas it makes lifts the dough."),
        ("- Flour\n- Yeast\n- Time", "Bread rises since yeast makes gas."),
        ("It just does, you know!", "Fermentation releases carbon dioxide."),
    ]
    return prompt, [(prompt, *pair) for pair in pairs]


@pytest.mark.parametrize(
    ("folder", "choices", "settings"),
    [
        ("small", corpus_choices, {}),
        ("smollm2", chat_choices, dict(hyper_std=0.1, tokens={})),
    ],
)
def test_greedy_texts(folder, choices, settings, request, engine, tmp_path):
    folder = request.getfixturevalue(folder)
    steerer = policies.make_steerer(folder, LOW_RANKS, **settings)
    prompt, told = choices()
    people = {f"person {i}": told[i:] + told[:i] * 2 for i in range(len(told))}
    write_adapters(steerer, people, tmp_path / "adapters")
    names = [NOBODY, *people]
    latents = steerer.latents_of([[], *people.values()])
    language = steerer.language
    asked = {
        "names": names,
        "prompt": language.prompts([prompt])[0],
        "tokens": NEW_TOKENS,
        "stop": language.stop_tokens,
    }
    engine(THEIRS, asked, folder, tmp_path / "adapters", tmp_path / "out.json")
    theirs = json.loads((tmp_path / "out.json").read_text())
    options = dict(max_new_tokens=NEW_TOKENS, temperature=0)
    table = steerer.write([prompt] * len(names), latents, **options).table
    ours = [table[i][table.start[i] :].tolist() for i in range(len(names))]
    assert len({tuple(tokens) for tokens in ours}) == len(names)
    for own, other, z in zip(ours, theirs, latents, strict=True):
        same = np.argmin([*map(int.__eq__, own, other), False])
        if same < min(len(own), len(other)):
            assert (
                gap(steerer, z, asked["prompt"] + own[:same], own, other, same) < 1e-3
            )
        else:
            assert len(own) == len(other) and same >= LEAST


def gap(steerer, z, tokens, *answers):
    """The difference of fsa's logits of the two tokens with which answers go on."""
    ours, theirs, place = answers
    variables = policies.folded(steerer, z)
    logits = policies.logits(steerer.language.model, variables, np.array([tokens]))
    return abs(float(logits[0, -1, ours[place]] - logits[0, -1, theirs[place]]))
