"""`fsa serve` in a process of its own: it starts, ends, and is killed."""

import contextlib
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from compiling import compiled_quickly

from fsa.commands import serve as serve_command

ROOT = pathlib.Path(__file__).resolve().parents[2]
OPTIONS = [[0.2], [0.7], [0.9]]
KILLS = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory, launch, compiled, tiny_fields):
    """A trained reward model on simulated people."""
    folder = tmp_path_factory.mktemp("serve") / "run"
    fields = [f"--config.{name}={value}" for name, value in tiny_fields.items()]
    config = "--config=experiments/synthetic/two_types.py:np-btl"
    with compiled_quickly(compiled):
        done = launch("train", config, *fields, f"--workdir={folder}")
    assert done.code == 0, done.err
    return folder


class Server:
    """A process of `fsa serve`, at `address`."""

    def __init__(self, run, *flags, **environment):
        """Waits until it listens."""
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "fsa",
                "serve",
                f"--workdir={run}",
                "--port=0",
                *flags,
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        assert line.startswith("Serving "), self.process.communicate()
        self.address = line.split(" at ")[1].split(";")[0]

    def call(self, method, path, body=None, token=None):
        """Returns the JSON of an answer; raises HTTPError for errors."""
        request = urllib.request.Request(self.address + path, method=method)
        request.add_header("Content-Type", "application/json")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        sent = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(request, sent, timeout=60) as response:
            return json.loads(response.read() or "null")

    def end(self, number):
        """Sends a signal; returns exit code, output and errors."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def serve(run):
    """Starts servers, which end with the test."""
    started = []

    def start(*flags, page=False, **environment):
        flags = flags if page else (*flags, "--nopage")
        started.append(Server(run, *flags, **environment))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.communicate()


def choice(i):
    return {"chosen": [i % 97 / 97], "rejected": [i % 89 / 89 + 0.001]}


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_it_ends_when_it_is_told_to(serve, tmp_path, number):
    server = serve(f"--people={tmp_path / 'people.sqlite'}")
    assert server.call("GET", "/health") == {"status": "ok"}
    server.call("POST", "/v1/people", {"name": "ann"})
    code, out, err = server.end(number)
    assert (code, "Traceback" in err) == (0, False)
    assert out.startswith("Stopped; people are kept in ")


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--host=0.0.0.0"], "--token_file"),
        (["--engine=http://127.0.0.1:1"], "--adapters"),
        (["--engine=vllm", "--adapters=a"], "--engine"),
        (["--token_file=none"], "--token_file"),
        (["--token_file=short"], "openssl"),
        (["--host=203.0.113.7", "--token_file=token"], "--host"),
        (["--people=.", "--port=0"], "--people"),
        (["--options=o.csv", "--nopage"], "--options"),
        (["--options=none.csv", "--port=0"], "--nopage"),
        (["--engine=http://127.0.0.1:1", "--adapters=a", "--port=0"], "reward model"),
    ],
)
def test_flags_that_cannot_be_served(run, tmp_path, launch, monkeypatch, flags, named):
    (tmp_path / "short").write_text("secret\n")
    (tmp_path / "token").write_text("0123456789abcdef0123\n")
    done = launch("serve", f"--workdir={run}", *flags, folder=tmp_path)
    assert done.code == 2
    assert done.err.strip().splitlines()[-1].startswith("error: ")
    assert named in done.err and "secret" not in done.err


def test_other_machines_cannot_fill_the_memory_by_headers():
    """A request of which no end comes is refused before it is large."""

    async def app(scope, receive, send):
        raise AssertionError("the request has no end")

    server = serve_command._server(app, loopback=False)
    with socket.create_server(("127.0.0.1", 0)) as own:
        # Signals are for the main thread alone.
        server.capture_signals = contextlib.nullcontext
        thread = threading.Thread(target=server.run, args=([own],))
        thread.start()
        try:
            with socket.create_connection(own.getsockname(), timeout=60) as client:
                client.sendall(b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000)
                assert client.recv(100).startswith(b"HTTP/1.1 400")
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.slow
def test_the_token_of_the_environment_is_asked_for(serve, tmp_path):
    people = f"--people={tmp_path / 'people.sqlite'}"
    server = serve(people, FSA_ADMIN_TOKEN="0123456789abcdef0123")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        server.call("GET", "/v1/people")
    found = server.call("GET", "/v1/people", token="0123456789abcdef0123")
    assert found == {"people": []}
    assert server.end(signal.SIGTERM)[0] == 0


@pytest.mark.slow
def test_the_page_is_there_and_uses_the_same_people(serve, tmp_path):
    options = tmp_path / "options.jsonl"
    options.write_text("".join(f'{{"option": {each}}}\n' for each in OPTIONS))
    people = f"--people={tmp_path / 'people.sqlite'}"
    server = serve(people, f"--options={options}", page=True)
    found = server.call("GET", "/page/session")
    assert [each["numbers"] for each in found["options"]] == OPTIONS
    given = {"kind": "chosen", "options": [2, 0]}
    server.call("POST", "/page/people/ann/answers", given)
    (kept,) = server.call("GET", "/v1/people/ann/answers")["answers"]
    assert (kept["chosen"], kept["rejected"]) == (OPTIONS[2], OPTIONS[0])
    assert server.end(signal.SIGTERM)[0] == 0


@pytest.mark.slow
def test_what_is_acknowledged_survives_kill(serve, tmp_path):
    """Killed at random moments of writing, with four clients; z is bit-equal."""
    people = f"--people={tmp_path / 'people.sqlite'}"
    names, kept, begun = "abcd", {}, {}
    z = {}
    for kill in range(KILLS + 1):
        server = serve(people)
        for name in names:
            if kill == 0:
                server.call("POST", "/v1/people", {"name": name})
                kept[name], begun[name] = {}, {}
                continue
            found = server.call("GET", f"/v1/people/{name}")
            ids = {answer.pop("id"): answer for answer in found["answers"]}
            # All that was acknowledged; and of the rest only what was being sent.
            assert kept[name].items() <= ids.items()
            assert ids.items() <= {**kept[name], **begun[name]}.items()
            if z.get(name, (None,))[0] == set(ids):
                assert found["z"] == z[name][1]
            z[name] = set(ids), found["z"]
            kept[name], begun[name] = ids, {}
        if kill == KILLS:
            break
        threads = [
            threading.Thread(target=_write, args=(server, name, kill, kept, begun))
            for name in names[: 1 + kill % len(names)]
        ]
        for thread in threads:
            thread.start()
        time.sleep(random.Random(kill).uniform(0.02, 0.6))
        server.end(signal.SIGKILL)
        for thread in threads:
            thread.join()
    assert sum(map(len, kept.values())) > KILLS
    for name in names:
        # From the answers alone, in a file that never held a z.
        told = f"again-{name}"
        server.call("POST", "/v1/people", {"name": told})
        for answer in list(kept[name].values())[::-1]:
            server.call("POST", f"/v1/people/{told}/answers", answer)
        assert server.call("GET", f"/v1/people/{told}")["z"] == z[name][1]
    assert server.end(signal.SIGTERM)[0] == 0


def _write(server, name, kill, kept, begun):
    """Adds answers until the server is gone."""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        for i in range(10_000):
            answer, own = choice(1000 * kill + i), f"{kill}-{i}"
            begun[name][own] = answer
            server.call("POST", f"/v1/people/{name}/answers", {**answer, "id": own})
            kept[name][own] = answer
