"""What docs/serve.md shows runs as it is written."""

import contextlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import httpx2
import policies
import pytest
import served
from served import ok

from fsa.serving.chat import OwnWriter
from fsa.serving.metrics import Metrics
from fsa.serving.person_model import PersonModel

PYTHON = os.environ.get("FSA_ENGINE_PYTHON")
PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "serve.md"
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(), re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"
CURL = [text for kind, text in BLOCKS if kind == "bash" and "curl" in text]
CHAT = [text for kind, text in BLOCKS if kind == "python"]
# Tokens of bytes; a question and its template fit.
TOKENS = dict(separator="", max_prompt=96, max_response=64)
LOW_RANKS = (("attention/out", "low_rank(2)"), ("mlp/down", "low_rank(3)"))
TOLD = [
    {"prompt": "Tea?", "chosen": "Gladly!", "rejected": "No."},
    {"prompt": "Coffee?", "chosen": "Oh yes!", "rejected": "Never."},
]
SEED = 7


class OpenAI:
    """OpenAI's client, as far as the page uses it."""

    def __init__(self, *, base_url, api_key):
        head = {"Authorization": f"Bearer {api_key}"}
        self._client = httpx2.Client(base_url=base_url, headers=head, timeout=120)
        self.chat = types.SimpleNamespace(completions=self)

    def create(self, **given):
        found = ok(self._client.post("chat/completions", json=given))
        as_object = lambda own: types.SimpleNamespace(**own)  # noqa: E731
        return json.loads(json.dumps(found), object_hook=as_object)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_requests(tmp_path):
    model = PersonModel(served.make_ranker(size=1))
    service = served.make_service(tmp_path, model)
    (lines,) = CURL
    with served.listening(service) as address:
        lines = lines.replace(ADDRESS, address).strip().splitlines()
        found = [
            json.loads(subprocess.check_output(["bash", "-c", f"{line} -sS"]))
            for line in lines
        ]
    added, answer, person, ranked, asked = found
    assert added["name"] == person["name"] == "ann" and added["token"]
    kept = {"id": answer["id"], "chosen": [0.9], "rejected": [0.6]}
    assert person["answers"] == [kept]
    options = [[0.2], [0.7], [0.8]]
    told = dict(chosen=[[0.9]], rejected=[[0.6]])
    order = model.ranker.rank(options, **told).order.tolist()
    assert [row["position"] for row in ranked["ranking"]] == order
    question = model.ranker.next_question(options, **told)
    assert asked["question"]["first"] == question.first


@pytest.fixture(scope="module")
def steerer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes") / "language"
    folder = policies.write_model_of_bytes(folder)
    return policies.make_steerer(folder, LOW_RANKS, tokens=TOKENS)


@pytest.fixture
def address(steerer, tmp_path, monkeypatch):
    """A server of a policy with the template of a chat; ann told something."""
    # What seeds a text that is asked for without a seed.
    monkeypatch.setattr("fsa.serving.chat.time.time_ns", lambda: SEED)
    model = PersonModel.of_policy(steerer, deterministic=False)
    service = served.make_service(tmp_path, model)
    service.store.add("ann")
    for answer in TOLD:
        service.add_answer("ann", answer)
    writer = OwnWriter(service, Metrics(), rows=2)
    with served.listening(service, writer=writer) as found:
        yield found
    writer.close()


def check(steerer, printed):
    """It is the text for what ann told, as the run writes it."""
    asked = [{"role": "user", "content": "How do I learn to juggle?"}]
    pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in TOLD]
    texts = [
        steerer.write(
            [json.dumps(asked)],
            steerer.latent(told)[None],
            max_new_tokens=200,
            temperature=1.0,
            seed=SEED,
        ).texts[0]
        for told in (pairs, [])
    ]
    assert printed == f"{texts[0]}\n" and texts[0] != texts[1]


@pytest.mark.slow
def test_the_chat(steerer, address, monkeypatch):
    (text,) = CHAT
    module = types.SimpleNamespace(OpenAI=OpenAI)
    monkeypatch.setitem(sys.modules, "openai", module)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(text.replace(ADDRESS, address), {})
    check(steerer, printed.getvalue())


@pytest.mark.engine
@pytest.mark.skipif(not PYTHON, reason="FSA_ENGINE_PYTHON names no Python")
def test_the_chat_by_the_client_of_openai(steerer, address):
    (text,) = CHAT
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYTHONIOENCODING"] = "utf-8"
    done = subprocess.run(
        [PYTHON, "-c", text.replace(ADDRESS, address)],
        capture_output=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    check(steerer, done.stdout.decode())
