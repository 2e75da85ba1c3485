"""Models, states and caches for all tests. Nothing is fetched: models are made here, seeded."""

import json
import logging
import os
import signal

import numpy as np
import pytest
from hypothesis import settings

import tiny_model
from ebm_encode.cli import main
from ebm_encode.engines.padded import PaddedEngine
from servers.stand_in import started
from support import FILES, make_identity, write_plain_cache

settings.register_profile("quick", max_examples=25, deadline=None)
settings.load_profile("quick")

os.environ["HF_HUB_OFFLINE"] = "1"

# A shell lets what it starts in the background ignore Ctrl-C, and programs started from there too;
# a handler in this process gives those of the tests the system's default again.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def heard(caplog):
    """What the package logs."""
    logging.getLogger("ebm_encode").propagate = True
    yield caplog
    logging.getLogger("ebm_encode").propagate = False


@pytest.fixture(autouse=True, scope="session")
def _own_digest_memory(tmp_path_factory):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache-home"))


@pytest.fixture(scope="session")
def states():
    """The distinct states of the samples."""
    return tiny_model.sample_states()


@pytest.fixture(scope="session")
def tokenizer(states):
    return tiny_model.train_tokenizer(states)


@pytest.fixture(scope="session")
def make_model(tokenizer, tmp_path_factory):
    """A function that makes a model's folder, once for each set of arguments."""
    made = {}

    def make(architecture="llama", *, seed=0, padding_side="right", **changes):
        key = (architecture, seed, padding_side, repr(sorted(changes.items())))
        if key not in made:
            tokenizer.padding_side = padding_side
            folder = tmp_path_factory.mktemp(architecture)
            made[key] = tiny_model.make_model(folder, tokenizer, architecture, seed=seed, **changes)
            tokenizer.padding_side = "right"
        return str(made[key])

    return make


@pytest.fixture(scope="session")
def llama(make_model):
    return make_model("llama")


@pytest.fixture(scope="session")
def _stand_in():
    with started() as found:
        yield found


@pytest.fixture
def stand_in(_stand_in):
    """Plays SGLang and vLLM servers, right ones and defective ones: see `servers.stand_in`."""
    return _stand_in


@pytest.fixture
def rows():
    """A function that makes unlike rows."""

    def make(count, dim=16, seed=0):
        return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)

    return make


@pytest.fixture
def identity():
    """A function that makes an encoder's identity."""
    return make_identity


@pytest.fixture
def write_cache():
    """A function that writes a cache with our writer."""
    return write_plain_cache


@pytest.fixture
def run_cli(capsys):
    """A function that runs the command line in this process: exit code, stdout, stderr."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def encode(run_cli, llama, tmp_path):
    """A function that runs `encode` on the samples: exit code, summary, stderr."""

    def run(*more, output=None, model=llama, files=FILES):
        output = output or tmp_path / "out.parquet"
        code, out, err = run_cli(
            "encode",
            "--model-path",
            model,
            "--trajectories",
            *files,
            "--output",
            output,
            "--batch-size",
            32,
            "--json",
            *more,
        )
        return code, json.loads(out) if out else None, err

    return run


@pytest.fixture
def spoil(monkeypatch):
    """Puts a fault into the embeddings of padded batches, or of the reference."""

    def put(fault, *, unbatched=False):
        right, right_states = PaddedEngine.forward, PaddedEngine.states
        name = "unbatched" if unbatched else "padded"

        def forward(self, sequences, slots):
            arrival = right(self, sequences, slots)
            if self.name == name:
                slots.array[slots.places] = fault(slots.array[slots.places], sequences)
            return arrival

        def states(self, sequences, slots, wanted):
            found = right_states(self, sequences, slots, wanted)
            if self.name == name == "unbatched":
                slots.array[slots.places] = fault(slots.array[slots.places], sequences)
            return found

        monkeypatch.setattr(PaddedEngine, "forward", forward)
        monkeypatch.setattr(PaddedEngine, "states", states)

    return put
