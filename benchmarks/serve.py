"""Times `fsa serve` under load, over the loopback address.

    python benchmarks/serve.py people --workdir=runs/demo
    python benchmarks/serve.py chat --workdir=runs/demo-policy

`people`: clients rank, ask, and add answers for many people at once, without a pause,
against a run of a reward model on simulated people. Reports latencies, the server's
processor time and its memory, and checks that there is no error, that every
acknowledged answer is there at the end, and that nobody has another person's. `chat`:
texts are streamed for one person and for several at once. Each replaces its part of
benchmarks/results/serve.md with --write.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import platform
import random
import re
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from fsa import text_tables
from fsa.serving.people import PeopleStore

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "serve.md"
OPTIONS, FIRST_ANSWERS, MOST_ANSWERS = 8, 3, 1000
# How often each request is sent, of 100.
MIX = {"rank": 50, "add an answer": 20, "next question": 10, "z": 10, "answers": 10}


class Client:
    """A connection to the server that is kept open.

    It waits in the socket and reads no more of an answer than it needs, since it takes
    its time from the processors that the server runs on.
    """

    def __init__(self, port):
        """Connects."""
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._file = self._socket.makefile("rb")
        self._host = f"Host: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"

    def send(self, method, path, body=None):
        """Sends a request; returns the length of the answer, 0 if it is not known.

        Raises:
          RuntimeError: for an error of the server.
        """
        sent = "" if body is None else json.dumps(body)
        head = f"{method} {path} HTTP/1.1\r\n{self._host}Content-Length: {len(sent)}"
        self._socket.sendall(f"{head}\r\n\r\n{sent}".encode())
        status, length = int(self._file.readline().split()[1]), 0
        while (line := self._file.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status}")
        return length

    def call(self, method, path, body=None):
        """Returns the JSON of an answer."""
        return json.loads(self._file.read(self.send(method, path, body)))

    def stream(self, path, body):
        """Yields the server-sent events of an answer."""
        self.send("POST", path, body | {"stream": True})
        while size := int(self._file.readline(), 16):
            part = self._file.read(size + 2)
            if b"[DONE]" not in part:
                yield json.loads(part.strip().removeprefix(b"data: "))
        self._file.readline()


class Server:
    """A process of `fsa serve`."""

    def __init__(self, workdir, people, *flags):
        """Waits until it listens."""
        line = f"-m fsa serve --workdir={workdir} --people={people}".split()
        self.process = subprocess.Popen(
            [sys.executable, *line, "--port=0", "--nopage", *flags],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        begin, shown = time.monotonic(), self.process.stdout.readline()
        self.seconds_to_start = time.monotonic() - begin
        self.port = int(re.search(r":(\d+);", shown)[1])

    def end(self):
        """Ends it by SIGTERM."""
        self.process.terminate()
        if self.process.wait(60):
            raise RuntimeError(f"the server ended with {self.process.returncode}")

    @property
    def memory(self):
        """Its resident memory, in MB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    @property
    def seconds(self):
        """Its processor time, user and system."""
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def vectors(rng, count):
    """Options of the synthetic task, each different from the others."""
    return [[x / 1000] for x in rng.sample(range(1000), count)]


def fill(place, names):
    """Makes the file of people."""
    store, rng = PeopleStore(place), random.Random(0)
    for name in names:
        store.add(name)
        for _ in range(FIRST_ANSWERS):
            chosen, rejected = vectors(rng, 2)
            answer = {"chosen": chosen, "rejected": rejected}
            store.add_answer(name, answer, most=MOST_ANSWERS)
    kept = {name: {own.id for own in store.answers(name)} for name in names}
    store.close()
    return kept


def load(port, seed, names, end):
    """Sends requests until the end, without a pause.

    Returns:
      How long each took, by its kind; and (name, id) of the answers that were added.
    """
    client, rng = Client(port), random.Random(seed)
    times, added = {what: [] for what in MIX}, []
    while time.monotonic() < end:
        name, what = rng.choice(names), rng.choices([*MIX], MIX.values())[0]
        path, body = f"/v1/people/{name}", None
        if what == "rank":
            path, body = f"{path}/rank", {"options": vectors(rng, OPTIONS)}
        elif what == "next question":
            path, body = f"{path}/question", {"options": vectors(rng, OPTIONS)}
        elif what == "add an answer":
            chosen, rejected = vectors(rng, 2)
            own = {"id": f"{seed}-{len(added)}"}
            path, body = f"{path}/answers", {"chosen": chosen, "rejected": rejected}
            body |= own
        elif what == "answers":
            path = f"{path}/answers"
        begin = time.perf_counter()
        found = client.call("GET" if body is None else "POST", path, body)
        times[what].append(time.perf_counter() - begin)
        if what == "rank":
            assert len(found["ranking"]) == OPTIONS
        elif what == "add an answer":
            assert found == own
            added.append((name, own["id"]))
    return times, added


def people(arguments):
    """Measures rankings, questions and answers; each client is a process."""
    names = [f"person-{i}" for i in range(arguments.people)]
    with tempfile.TemporaryDirectory() as folder:
        kept = fill(f"{folder}/people.sqlite", names)
        # Begun before there are threads, with what this process has imported.
        forked = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(arguments.clients, forked) as pool:
            list(pool.map(time.sleep, [0.1] * arguments.clients))
            server = Server(arguments.workdir, f"{folder}/people.sqlite")
            port = server.port
            _, added = load(port, 99, names, time.monotonic() + 3)
            begin, used = time.monotonic(), server.seconds
            end = begin + arguments.seconds
            found = [
                pool.submit(load, port, i, names, end) for i in range(arguments.clients)
            ]
            time.sleep(min(10, arguments.seconds / 2))
            memory = [server.memory]
            time.sleep(max(0, end - time.monotonic()))
            memory.append(server.memory)
            found = [each.result() for each in found]
            used = server.seconds - used
        times = {what: [x for own, _ in found for x in own[what]] for what in MIX}
        for name, own in [*added, *(each for _, more in found for each in more)]:
            kept[name].add(own)
        client = Client(port)
        for name in names:
            answers = client.call("GET", f"/v1/people/{name}/answers")["answers"]
            if (ids := {answer["id"] for answer in answers}) != kept[name]:
                raise RuntimeError(f"{name}: {len(ids ^ kept[name])} answers differ")
        server.end()
    rows = [["request", "number", "p50, ms", "p99, ms", "largest, ms"]]
    for what in MIX:
        own = sorted(times[what])
        points = own[len(own) // 2], own[len(own) * 99 // 100], own[-1]
        rows.append([what, f"{len(own):,}", *(f"{1000 * x:.1f}" for x in points)])
    total = sum(map(len, times.values()))
    growth = 100 * (memory[1] / memory[0] - 1)
    return [
        f"{arguments.people:,} people, {arguments.clients} clients that never pause, "
        f"{arguments.seconds} s, {OPTIONS} options a ranking: {total:,} requests, no "
        f"error, and all {sum(map(len, kept.values())):,} answers are there, of nobody "
        "else.",
        "",
        *table(rows),
        "",
        f"The server took {1000 * used / total:.2f} ms of processor time a request, "
        f"and {memory[0]:.0f} MB of memory after 10 s, {memory[1]:.0f} MB at the end "
        f"({growth:+.1f} %). It listened after {server.seconds_to_start:.0f} s.",
    ]


def write(client, name, seed, arguments):
    """Streams a text; returns (begin, first token, end, number of tokens)."""
    message = {"role": "user", "content": arguments.prompt}
    body = {"model": name, "messages": [message], "seed": seed}
    body |= {"max_tokens": arguments.tokens, "stream_options": {"include_usage": True}}
    begin, first, tokens = time.perf_counter(), None, 0
    for event in client.stream("/v1/chat/completions", body):
        first = first or time.perf_counter()
        if event.get("usage"):
            tokens = event["usage"]["completion_tokens"]
    return begin, first, time.perf_counter(), tokens


def chat(arguments):
    """Measures texts for one person and for several at once."""
    rows = [["at once", "texts", "first token p50, ms", "p99, ms", "tokens/s"]]
    with tempfile.TemporaryDirectory() as folder:
        server = Server(
            arguments.workdir,
            f"{folder}/people.sqlite",
            f"--texts_at_once={arguments.clients}",
        )
        clients = [Client(server.port) for _ in range(arguments.clients)]
        names = [f"person-{i}" for i in range(arguments.clients)]
        for name in names:
            clients[0].call("POST", "/v1/people", {"name": name})

        def several(i, texts):
            return [
                write(clients[i], names[i], seed, arguments) for seed in range(texts)
            ]

        for count in (1, arguments.clients):
            with concurrent.futures.ThreadPoolExecutor(count) as pool:
                list(pool.map(several, range(count), [2] * count))
                found = pool.map(several, range(count), [arguments.texts] * count)
                flat = [each for own in found for each in own]
            waited = sorted(first - begin for begin, first, _, _ in flat)
            seconds = max(x[2] for x in flat) - min(x[0] for x in flat)
            rate = sum(x[3] for x in flat) / seconds
            points = waited[len(waited) // 2], waited[len(waited) * 99 // 100]
            shown = (f"{1000 * x:.1f}" for x in points)
            rows.append([str(count), str(len(flat)), *shown, f"{rate:.0f}"])
        server.end()
    return [
        f"Texts of at most {arguments.tokens} tokens, streamed; a client asks again "
        "when its text ends.",
        "",
        *table(rows),
    ]


def table(rows):
    """Returns the lines of a table in Markdown."""
    first, *others = ["| " + " | ".join(row) + " |" for row in rows]
    return [first, "|" + "---|" * len(rows[0]), *others]


def main():
    """Measures one part, prints it, and keeps it if asked to."""
    parser = argparse.ArgumentParser(description=text_tables.in_one_line(__doc__))
    parser.add_argument("part", choices=["people", "chat"])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--people", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--texts", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--prompt", default="review the novel :")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    measure = {"people": people, "chat": chat}[arguments.part]
    lines = measure(arguments)
    cores = len(os.sched_getaffinity(0))
    lines += [
        "",
        f"{platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}.",
    ]
    print("\n".join(lines))
    if arguments.write:
        keep(arguments.part, "\n".join(lines))


def keep(part, text):
    """Replaces a part of the file of results."""
    head = "# What `fsa serve` takes\n\nMade by benchmarks/serve.py.\n"
    known = RESULTS.read_text() if RESULTS.exists() else head
    titles = {"people": "## People", "chat": "## Chat"}
    parts = dict(re.findall(r"^(## \w+)\n\n(.*?)(?=^## |\Z)", known, re.M | re.S))
    parts[titles[part]] = text
    body = "\n".join(
        f"{title}\n\n{parts[title].strip()}\n"
        for title in titles.values()
        if title in parts
    )
    RESULTS.write_text(f"{head}\n{body}")


if __name__ == "__main__":
    main()
