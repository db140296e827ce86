"""`fsa sample --engine`: the answers of a server, as those of a model."""

import pytest
from openai_server import serving

from fsa.data import files
from fsa.data.sources import sampled


@pytest.fixture
def line(tmp_path):
    files.write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": x} for x in "abc"])
    return [
        "sample",
        f"--prompts={tmp_path}/prompts.jsonl",
        f"--out={tmp_path}/s.jsonl",
    ]


def test_answers(launch, line, tmp_path):
    with serving() as server:
        more = f"--engine={server.url}", "--model=small", "--num_samples=3"
        finished = launch(*line, *more, "--stop=x", "--stop=,", "--top_p=0.5")
        assert finished.code == 0, finished.err
    samples, report = sampled.read(str(tmp_path / "s.jsonl"))
    assert samples.prompts == ("a", "b", "c") and report.rows == 9
    assert "9 answers to 3 prompts" in finished.out
    sent = server.requests[-1][1]
    assert (sent["stop"], sent["top_p"], sent["n"]) == (["x", ","], 0.5, 3)
    assert not list(tmp_path.glob("*.partial"))


REFUSED = {
    "no engine": (["--engine=http://127.0.0.1:9"], "--engine=http://127.0.0.1:9"),
    "openings": (["--engine=http://x", "--openings=3"], "--openings"),
    "dtype": (["--engine=http://x", "--dtype=bfloat16"], "--dtype"),
    "stop": (["--stop=x"], "--engine"),
    "completions": (["--completions"], "--engine"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input(launch, line, tmp_path, what, monkeypatch):
    more, named = REFUSED[what]
    line = [x for x in line if what != "openings" or "--prompts" not in x]
    finished = launch(*line, "--model=small", *more)
    assert finished.code == 2 and finished.err.count("\n") == 1, finished.err
    assert named in finished.err
    assert not list(tmp_path.glob("s.jsonl*"))
