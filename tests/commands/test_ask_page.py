"""`fsa ask --page`: ports, answers from before, and the run that is installed."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from fsa import examples
from fsa.commands import ask_page
from fsa.data import dataset
from fsa.errors import InputError
from fsa.inference import saved_model


def test_a_port_that_is_taken_is_refused_or_passed_over():
    with socket.socket() as other, ask_page.find_port(None) as free:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {taken} is taken"):
            ask_page.find_port(taken)
        free.listen()
        with ask_page.find_port(None) as next_one:
            assert 8000 <= free.getsockname()[1] != next_one.getsockname()[1]


def test_the_page_keeps_no_table(launch, tmp_path):
    finished = launch("ask", "--page", f"--workdir={tmp_path}", "--out=me.csv")
    assert finished.code == 2 and "--out: the page offers" in finished.err
    finished = launch("ask", "--page")
    assert finished.code == 2 and "--workdir" in finished.err


def test_the_example_is_a_run_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir, attribution = examples.unpack(examples.CUISINES)
    assert "CC BY 4.0" in attribution and "fivethirtyeight" in attribution
    description = saved_model.describe_best(workdir)
    data = dataset.load(saved_model.checked_data(workdir, description, None))
    assert len(data.texts) == 40 and {"Italy", "Japan"} <= set(data.texts)
    assert sum(len(each.names) for each in data.users.values()) > 1000
    # Answers that are kept there are not unpacked over.
    (tmp_path / workdir / "people.sqlite").touch()
    assert examples.unpack(examples.CUISINES)[0] == workdir
    assert (tmp_path / workdir / "people.sqlite").exists()


@pytest.mark.slow
def test_the_demo_is_served_until_ctrl_c(tmp_path):
    (tmp_path / "me.csv").write_text("chosen,rejected\nItaly,Japan\n")
    command = [*(sys.executable, "-m", "fsa", "ask", "--demo"), "--choices=me.csv"]
    page = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        address = re.search(r"http://[\d.:]+", page.stdout.readline())[0]
        view = urllib.request.Request(
            f"{address}/page/people/me/view",
            b"{}",
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(view, timeout=60) as response:
            assert b'"answers":["earlier-1"]' in response.read()
        page.send_signal(signal.SIGINT)
        out, _ = page.communicate(timeout=60)
        assert page.returncode == 0 and "answers are kept in" in out
    finally:
        page.kill()
