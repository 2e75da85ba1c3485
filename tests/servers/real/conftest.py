"""Fixtures of the tests against real servers, which no other run collects.

`make test-sglang`, `test-sglang-old` and `test-vllm` make the environments and run these files.
Whatever a server did is printed at the end, for docs/servers.md.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from ebm_encode.cli import main
from servers.real.launch import real_server
from servers.real.reference import Reference

SEEN = pytest.StashKey[list[str]]()


def pytest_configure(config):
    config.stash[SEEN] = []


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[SEEN]:
        terminalreporter.section("what the real server did")
        for line in config.stash[SEEN]:
            terminalreporter.line(line)


@pytest.fixture
def note(request):
    """A function that prints a line at the end of the run."""
    return request.config.stash[SEEN].append


@pytest.fixture(scope="session")
def real_texts(states):
    """Six states of different lengths, two that share all but their last token, and a long one."""
    short = [text for text in states if len(text) < 600]
    chosen = short[:: max(1, len(short) // 6)][:6]
    return [*chosen, chosen[0] + "\nx : Nat", chosen[0] + "\ny : Int", "\n".join(states)[:3000]]


@pytest.fixture(scope="session")
def reference(served_model, real_texts):
    return Reference.of(served_model, real_texts)


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """A function that starts a real server; use it in a `with`."""

    def begin(name, model, *options, **variables):
        log = Path(tmp_path_factory.mktemp("server")) / "log.txt"
        return real_server(name, model, log, *options, **variables)

    return begin


@pytest.fixture(scope="session")
def served_model(llama):
    """The folder of the model; files whose server cannot run it have their own."""
    return llama


@pytest.fixture(scope="session")
def many(states):
    """A hundred different states."""
    return [text for text in states if len(text) < 900][:100]


@pytest.fixture(scope="session")
def means(served_model, many):
    """Their embeddings by plain transformers at batch size 1: [100, dim]."""
    made = Reference.of(served_model, many)
    return np.stack([made.mean(i) for i in range(len(many))])


@pytest.fixture
def doctor(capsys, note):
    """The exit code and the verdict of `ebm-encode doctor` on a real server."""

    def examine(url, *options):
        code = main(["doctor", "--server", url, "--json", "--timeout", "120", *options])
        found = json.loads(capsys.readouterr().out)
        for finding in found["findings"]:
            note(f"doctor: {finding['question']}: {finding['answer']}")
        return code, {finding["question"]: finding for finding in found["findings"]}

    return examine
