"""Ctrl-C ends a process, whatever its main thread is doing."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib, signal, sys, threading, time

from fsa import exits

mode = sys.argv[1]
if mode == "ignores":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
exits.watch_ctrl_c()
if mode == "finalizes":
    exits.unwind_on_ctrl_c()
if mode in ("unwinds", "is stuck", "saves"):
    exits.unwind_on_ctrl_c(None if mode == "saves" else 0.2, lambda: "nothing to save")
if mode == "is stuck for long":
    exits.unwind_on_ctrl_c()
try:
    # When the main thread is where it is to be.
    threading.Timer(0.2, print, ["ready"], {"flush": True}).start()
    if mode in ("is stuck", "is stuck for long", "starts"):
        # Minutes in a library that does not ask for signals.
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    if mode == "finalizes":
        class Slow:
            def __del__(self):
                time.sleep(0.5)
        Slow()
        for _ in range(100):
            time.sleep(0.1)
    time.sleep(0.5 if mode == "ignores" else 60)
except KeyboardInterrupt:
    if mode == "saves":
        time.sleep(0.5)
    print("removed what was half written", exits.was_interrupted())
    exits.at_once("left", exits.INTERRUPTED)
"""


@pytest.mark.parametrize(
    ("mode", "code", "out", "err"),
    [
        ("starts", 130, "", "nothing is lost"),
        ("unwinds", 130, "removed what was half written True\n", "left"),
        # Python drops what is raised in a finalizer.
        ("finalizes", 130, "removed what was half written True\n", "left"),
        ("is stuck", 130, "", "nothing to save"),
        # It has more time than a command that only cleans up.
        ("saves", 130, "removed what was half written True\n", "saving first"),
        ("ignores", 0, "", ""),
    ],
)
def test_one(mode, code, out, err):
    process = start(mode)
    process.send_signal(signal.SIGINT)
    shown = process.communicate(timeout=30)
    assert (process.returncode, shown[0]) == (code, out)
    assert err in shown[1] and "Traceback" not in shown[1]


def test_what_is_stuck_says_at_once_that_it_will_end():
    process = start("is stuck for long")
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C again" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130


def test_a_second_one_ends_what_saves():
    process = start("saves")
    process.send_signal(signal.SIGINT)
    assert "saving first" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")


def start(mode):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a script ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "ready\n"
    return process
