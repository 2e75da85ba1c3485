"""Processes that an iteration ends, also those that it did not start itself."""

import os
import subprocess
import sys

import psutil
import pytest

from ebm_encode.pipeline.processes import Started

# Starts a process, says which, and never takes its exit code.
_CARELESS = """
import os, subprocess, sys, time
os.environ["EBM_ENCODE_ITERATE_MARK"] = sys.argv[1]
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
_DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


@pytest.mark.timeout(60)
def test_a_process_that_its_parent_does_not_collect_is_not_waited_for():
    """As in a container, whose first process may collect nothing."""
    mark = "0123456789abcdef" * 2
    command = [sys.executable, "-c", _CARELESS, mark]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as careless:
        try:
            child = psutil.Process(int(careless.stdout.readline()))
            started = Started("the server", mark)
            assert started.processes() == [child]
            assert started.end(grace=3600) == 1
            assert child.status() == psutil.STATUS_ZOMBIE
            assert started.processes() == []
            assert started.end(grace=3600) == 0
        finally:
            careless.kill()


@pytest.mark.timeout(60)
def test_a_process_that_does_not_listen_is_killed():
    mark = "fedcba9876543210" * 2
    environment = os.environ | {"EBM_ENCODE_ITERATE_MARK": mark}
    command = [sys.executable, "-c", _DEAF]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        found = psutil.Process(process.pid)
        assert process.stdout.readline() == "deaf\n"
        assert Started("the step", mark).end(grace=0.2) == 1
        assert found.status() == psutil.STATUS_ZOMBIE
        assert process.wait() == -9
