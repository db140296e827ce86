"""An engine has the adapters that are needed, and forgets the others."""

import concurrent.futures
import contextlib
import json
import random
import socket
import threading
import time

import httpx2
import openai_server
import pytest
import served
from served import ok

from fsa.serving.engine import EngineWriter
from fsa.serving.metrics import Metrics
from fsa.serving.person_model import PersonModel

CHAT = "/v1/chat/completions"
CONFIG = "adapter_config.json"
A = served.vectors(40)


class Engine:
    """A stand-in for vLLM, which writes what is in the file of an adapter.

    Attributes:
      adapters: name -> what its file holds.
      loads: the names that it was told to load, in this order.
      begun: how many texts it has begun.
      left: how many of them were not waited for.
      go_on: texts wait for it before their second half.
    """

    def __init__(self):
        self.adapters, self.loads, self.begun, self.left = {}, [], 0, 0
        self.go_on = threading.Event()
        self.go_on.set()

    def answer(self, handler, path, sent):
        name = sent.get("lora_name")
        if path.endswith("/load_lora_adapter"):
            with open(f"{sent['lora_path']}/{CONFIG}") as file:
                self.adapters[name] = file.read()
            self.loads.append(name)
            handler.reply(200, "loaded")
        elif path.endswith("/unload_lora_adapter"):
            known = self.adapters.pop(name, None)
            handler.reply(404 if known is None else 200, "unloaded")
        elif sent["model"] not in self.adapters:
            handler.reply(404, json.dumps({"error": {"message": "no such model"}}))
        else:
            self.write(handler, sent)

    def write(self, handler, sent):
        halves = "Told: ", self.adapters[sent["model"]]
        self.begun += 1
        if not sent.get("stream"):
            if self.waits(handler):
                choices = [{"message": {"content": "".join(halves)}}]
                found = {"model": sent["model"], "choices": choices}
                handler.reply(200, json.dumps(found))
            return
        handler.send_response(200)
        handler.end_headers()
        for half in halves:
            event = {"choices": [{"delta": {"content": half}}]}
            handler.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            handler.wfile.flush()
            if not self.waits(handler):
                return
        handler.wfile.write(b"data: [DONE]\n\n")
        # As vLLM, it still needs the adapter at the end.
        assert sent["model"] in self.adapters

    def waits(self, handler):
        """Whether the client waits until the text may go on."""
        while not self.go_on.wait(0.01):
            with contextlib.suppress(BlockingIOError):
                flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
                if not handler.connection.recv(1, flags):
                    self.left += 1
                    handler.close_connection = True
                    return False
        return True


@pytest.fixture
def engine():
    """A running engine, with its address."""
    found = Engine()
    with openai_server.listening(found.answer) as found.url:
        yield found
        found.go_on.set()


@pytest.fixture(scope="module")
def model():
    return PersonModel(served.make_ranker())


@pytest.fixture
def service(model, tmp_path):
    """People, whose adapter is a file with the ids of their answers."""
    made = served.make_service(tmp_path, model)

    def save(name, folder):
        ids = sorted(each.id for each in made.answers(name))
        folder.mkdir()
        (folder / CONFIG).write_text(" ".join(ids))

    made.save_adapter = save
    for name in ("ann", "bob"):
        made.store.add(name)
    yield made
    made.store.close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "adapters"


@pytest.fixture
def client(service, engine, folder):
    writer = EngineWriter(service, Metrics(), engine.url, str(folder))
    with (
        served.listening(service, writer=writer) as address,
        httpx2.Client(base_url=address, timeout=60) as opened,
    ):
        yield opened


def body(name, **more):
    return {"model": name, "messages": [{"role": "user", "content": "Tea?"}]} | more


def text_for(client, name):
    found = ok(client.post(CHAT, json=body(name)))
    assert found["model"] == name
    return found["choices"][0]["message"]["content"]


def tell(client, name, id):
    i = sum(id.encode()) % (len(A) - 1)
    answer = {"id": id, "chosen": A[i], "rejected": A[i + 1]}
    ok(client.post(f"/v1/people/{name}/answers", json=answer))


def eventually(check):
    """Waits until `check()` is true."""
    end = time.monotonic() + 30
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


def only(engine, folder, *told):
    """Whether the engine, and the folder, has adapters with these contents alone."""
    kept = {path.name for path in folder.iterdir()}
    return sorted(engine.adapters.values()) == sorted(told) and kept == {
        *engine.adapters
    }


@contextlib.contextmanager
def streaming(client, name):
    """Yields the lines of a text of which the first part was sent."""
    with client.stream("POST", CHAT, json=body(name, stream=True)) as response:
        lines = (line for line in response.iter_lines() if line)
        assert "Told: " in next(lines)
        yield lines


def test_one_adapter_of_a_person_is_kept(client, engine, folder):
    for number in range(4):
        ids = [f"a{i}" for i in range(number)]
        for _ in range(2):
            assert text_for(client, "ann") == f"Told: {' '.join(ids)}"
        eventually(lambda ids=ids: only(engine, folder, " ".join(ids)))
        tell(client, "ann", f"a{number}")
    # Each was loaded once.
    assert len(engine.loads) == len(set(engine.loads)) == 4


def test_an_adapter_in_use_is_kept(client, engine, folder):
    """Until the last text that it writes has come to its end."""
    tell(client, "ann", "a0")
    engine.go_on.clear()
    with streaming(client, "ann") as first, streaming(client, "ann") as second:
        tell(client, "ann", "a1")
        with streaming(client, "ann") as third:
            assert sorted(engine.adapters.values()) == ["a0", "a0 a1"]
            engine.go_on.set()
            assert "a0 a1" in next(third)
        assert '"a0"' in next(first) and '"a0"' in next(second)
        assert [*first][-1] == [*second][-1] == "data: [DONE]"
    eventually(lambda: only(engine, folder, "a0 a1"))


def test_going_back_to_an_adapter_in_use(client, engine, folder):
    tell(client, "ann", "a0")
    engine.go_on.clear()
    with streaming(client, "ann"):
        tell(client, "ann", "a1")
        with streaming(client, "ann"):
            path = "/v1/people/ann/answers/a1"
            assert client.delete(path).status_code == 204
            with streaming(client, "ann") as lines:
                engine.go_on.set()
                assert '"a0"' in next(lines)
    eventually(lambda: only(engine, folder, "a0"))
    assert len(engine.loads) == 2
    assert text_for(client, "ann") == "Told: a0"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_text(client, engine, folder, stream):
    """And what it used is forgotten after the next answer."""
    engine.go_on.clear()
    address = client.base_url.host, client.base_url.port
    sent = json.dumps(body("ann", stream=stream))
    with socket.create_connection(address) as own:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(sent)}"
        kind = "Content-Type: application/json"
        own.sendall(f"{head}\r\n{kind}\r\n\r\n{sent}".encode())
        eventually(lambda: engine.begun == 1)
    eventually(lambda: engine.left == 1)
    engine.go_on.set()
    tell(client, "ann", "a0")
    assert text_for(client, "ann") == "Told: a0"
    eventually(lambda: only(engine, folder, "a0"))


def test_adapters_of_people_who_are_removed(client, engine, folder):
    tell(client, "ann", "a0")
    assert text_for(client, "ann") == "Told: a0"
    assert client.delete("/v1/people/ann").status_code == 204
    assert text_for(client, "bob") == text_for(client, "nobody") == "Told: "
    eventually(lambda: only(engine, folder, "", ""))
    # Another person of that name.
    ok(client.post("/v1/people", json={"name": "ann"}))
    assert text_for(client, "ann") == "Told: "


def test_an_engine_that_begins_anew(client, engine, folder):
    tell(client, "ann", "a0")
    for _ in range(2):
        assert text_for(client, "ann") == "Told: a0"
        engine.adapters.clear()
    tell(client, "ann", "a1")
    assert text_for(client, "ann") == "Told: a0 a1"
    eventually(lambda: only(engine, folder, "a0 a1"))


def test_a_server_that_begins_anew(client, engine, folder, service):
    tell(client, "ann", "a0")
    text_for(client, "ann"), text_for(client, "bob")
    assert len(engine.adapters) == 2
    EngineWriter(service, Metrics(), engine.url, str(folder)).warm_up()
    assert only(engine, folder)


def test_many_at_once(client, engine, folder):
    """Texts, streamed or not, while answers come; some clients leave."""

    def run(seed):
        rng = random.Random(seed)
        name = ("ann", "bob")[seed % 2]
        for i in range(12):
            if rng.random() < 0.3:
                tell(client, name, f"{seed}-{i}")
            elif rng.random() < 0.5:
                with streaming(client, name) as lines:
                    if rng.random() < 0.5:
                        assert [*lines][-1] == "data: [DONE]"
            else:
                assert text_for(client, name).startswith("Told: ")

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(6)))
    told = []
    for name in ("ann", "bob"):
        ids = ok(client.get(f"/v1/people/{name}/answers"))["answers"]
        told.append(" ".join(sorted(each["id"] for each in ids)))
        assert text_for(client, name) == f"Told: {told[-1]}"
    assert len(set(told)) == 2
    eventually(lambda: only(engine, folder, *told))
    assert len(engine.loads) == len(set(engine.loads))
