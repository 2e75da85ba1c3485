"""Layers compiled by torch: the same embeddings, the reference without them, only where they pay.

The compiler's last step, which makes machine code and wants a C++ compiler or a GPU, is skipped.
"""

import json
import logging
import threading

import numpy as np
import pytest
import torch

from ebm_encode import Encoder
from ebm_encode.engines import compiled
from ebm_encode.engines.calibration import Calibration
from ebm_encode.engines.prefix import PrefixEngine
from ebm_encode.engines.reference import compare
from ebm_encode.errors import ArgumentError, ModelError
from matrix import pairs, thorough
from support import compare_everything, compare_nothing
from test_parity import unbatched


@pytest.fixture(autouse=True)
def graphs(monkeypatch, tmp_path):
    """The graphs that were compiled; what is measured is not kept for other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    made = []

    def backend(graph, _inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", backend)
    yield made
    torch.compiler.reset()


@pytest.mark.parametrize(
    "architecture", ["gemma2", "qwen3_moe", *thorough("llama", "mistral", "gpt2")]
)
def test_compiled_layers_give_the_same_embeddings(make_model, states, graphs, architecture):
    folder = make_model(architecture)
    encoder = Encoder.load(folder, compile_layers="on")
    assert encoder.selection.compiled
    assert graphs
    some = sorted(states)[100:180]
    assert compare(encoder.encode(some), unbatched(folder, some))[0] <= 1e-5


def test_layers_and_sizes_share_a_compilation(make_model, states, graphs):
    """As many graphs for twelve layers as for three, and none more for other sizes of a pass."""
    made = {}
    for layers in (3, 12):
        torch.compiler.reset()
        graphs.clear()
        encoder = Encoder.load(make_model(num_hidden_layers=layers), compile_layers="on")
        encoder.encode(states[:10])
        made[layers] = len(graphs)
        for count in (1, 40):
            encoder.encode(states[:count])
        assert len(graphs) == made[layers]
    assert made[12] == made[3] > 0


def test_the_reference_runs_the_models_own_code(llama, states, monkeypatch):
    """What embeddings are compared with must not share a fault of the compiler's."""
    monkeypatch.setattr(compiled, "BACKEND", lambda graph, _: graph.forward)
    encoder = Encoder.load(llama, compile_layers="on")
    ran = []
    in_use = compiled.CompiledLayers.in_use
    monkeypatch.setattr(
        compiled.CompiledLayers, "in_use", lambda self: ran.append(1) or in_use(self)
    )
    encoder.run_unbatched(encoder.prompts.tokenize(states[:1])[0])
    assert not ran
    assert all("forward" not in vars(module) for module in encoder.model.base.modules())
    encoder.encode(states[:3])
    assert ran
    assert all("forward" not in vars(module) for module in encoder.model.base.modules())


def test_a_compiler_that_is_wrong_is_not_used(llama, monkeypatch):
    def wrong(graph, _inputs):
        def run(*arguments):
            outputs = graph.forward(*arguments)
            return tuple(out * 1.01 if out.is_floating_point() else out for out in outputs)

        return run

    def broken(_graph, _inputs):
        raise RuntimeError("no compiler")

    for backend in (wrong, broken):
        monkeypatch.setattr(compiled, "BACKEND", backend)
        with pytest.raises(ModelError, match="`compile_layers` on: cannot be used for this model"):
            Encoder.load(llama, compile_layers="on")
        torch.compiler.reset()


def test_what_cannot_be_compiled_is_reported(make_model, llama):
    with pytest.raises(ModelError, match="`compile_layers` on: engine padded"):
        Encoder.load(make_model("mamba2"), compile_layers="on")
    with pytest.raises(ArgumentError, match="compile_layers 'yes'"):
        Encoder.load(llama, compile_layers="yes")
    assert not Encoder.load(llama).selection.compiled


@pytest.fixture
def on_a_gpu(llama, states, monkeypatch, heard):
    """Calibrates an encoder as on a GPU, where passes run at the rates given."""
    heard.set_level("INFO", "ebm_encode")

    def run(rate, compiled_rate, times=1e6):
        monkeypatch.setattr(
            "ebm_encode.engines.tuning.calibrate",
            lambda _, __, tokens, **___: Calibration(8192, {8192: rate}, sample=tokens),
        )
        if isinstance(compiled_rate, Exception):

            def measure(*_, **__):
                raise compiled_rate

        else:

            def measure(engine, sample, **__):
                through = engine.size([sample[i] for i in range(len(sample))])
                return through / (compiled_rate if engine.compiled else rate)

        monkeypatch.setattr("ebm_encode.engines.tuning.seconds_of", measure)
        encoder = Encoder.load(llama)
        encoder.tuning.wanted = encoder.selection.tries_compiling = True
        encoder.calibrate(encoder.prompts.tokenize(states[:20]), times=times)
        return encoder

    return run


def test_layers_are_compiled_where_that_pays(on_a_gpu, heard):
    encoder = on_a_gpu(1000.0, 1200.0)
    assert encoder.selection.compiled
    assert encoder.tuning.settings() == {
        "engine": "shared-prefix", "max_batch_tokens": 8192, "compiled": True,
        "request_engine": encoder.tuning.settings()["request_engine"], "rate": 1200.0,
        "tried_compiled": True,
    }  # fmt: skip
    assert encoder.tuning.calibration.to_json()["tokens_per_second_compiled"] == 1200.0
    assert "layers compiled (8,192: 1,000 tokens/s, compiled: 1,200 tokens/s" in heard.text


def test_layers_are_left_as_they_are_where_that_pays_not(on_a_gpu, graphs, heard):
    assert not on_a_gpu(1000.0, 1010.0).selection.compiled
    assert not on_a_gpu(1000.0, torch.OutOfMemoryError("CUDA out of memory")).selection.compiled
    assert "layers are not compiled: OutOfMemoryError" in heard.text
    before = len(graphs)
    assert not on_a_gpu(1000.0, 1200.0, times=1.0).selection.compiled  # seconds of work
    assert len(graphs) == before


@pytest.mark.parametrize(
    ("engine", "wrong"), pairs(["auto", "shared-prefix"], ["embedding", "pass"])
)
def test_compiled_layers_that_go_wrong_in_use_give_way_to_plain_ones(
    llama, states, monkeypatch, heard, engine, wrong
):
    """What is at fault is the compiler, not the engine; nobody forced the former."""
    encoder = Encoder.load(llama, engine=engine, compile_layers="on")
    used = encoder.choice.engine
    assert used.compiled
    forward = used.forward

    def faulty(sequences, slots):
        arrival = forward(sequences, slots)
        if wrong == "pass":
            raise RuntimeError("no kernel")
        slots.array[slots.places] *= np.float32(1.001)
        return arrival

    monkeypatch.setattr(used, "forward", faulty)
    compare_everything(encoder)
    assert compare(encoder.encode(states[:40]), unbatched(llama, states[:40]))[0] <= 1e-5
    assert encoder.choice.engine.name == used.name
    assert not encoder.selection.compiled
    said = {
        "embedding": "compiled shared-prefix differs from",
        "pass": "compiled shared-prefix failed",
    }
    assert said[wrong] in encoder.choice.reason
    assert "engine shared-prefix from now on" in heard.text
    encoder.tuning.wanted = True
    assert encoder.resume(encoder.settings() | {"compiled": True})
    assert not encoder.selection.compiled, "nor are they compiled again"


def test_a_forced_engine_that_is_refused_in_use_is_not_used_again(
    llama, states, monkeypatch, heard
):
    encoder = Encoder.load(llama, engine="shared-prefix", compile_layers="on")
    used = encoder.choice.engine

    def fail(*_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(used, "forward", fail)
    # Nor do the layers as they are work any more.
    monkeypatch.setattr(PrefixEngine, "trial", fail)
    with pytest.raises(ModelError, match="cannot be used for this model"):
        encoder.encode(states[:20])
    assert encoder.choice.engine is not used
    assert compare(encoder.encode(states[:20]), unbatched(llama, states[:20]))[0] <= 1e-5
    assert "from now on" in heard.text


def test_a_compiled_pass_is_run_again_if_layers_are_plain_by_then(llama, states, monkeypatch):
    """Another thread may find compiled layers wrong."""
    encoder = Encoder.load(llama, compile_layers="on")
    selection, used = encoder.selection, encoder.choice.engine
    right, forward, passes = unbatched(llama, states[:40]), used.forward, []
    sample = encoder.prompts.tokenize(states[:1])

    def overtaken(sequences, slots):
        under_way = forward(sequences, slots)
        passes.append(1)
        slots.array[slots.places] *= np.float32(1.01)
        threading.Thread(target=fall_back).start()
        return under_way

    def fall_back():
        selection.fall_back(used, "is wrong in another thread", sample)
        compare_nothing(encoder)
        fallen_back.set()

    fallen_back = threading.Event()
    monkeypatch.setattr(used, "forward", overtaken)
    compare_nothing(encoder)
    tokens_of = used.tokens_per_forward

    def after_the_other_thread(size):
        fallen_back.wait()
        return tokens_of(size)

    monkeypatch.setattr(used, "tokens_per_forward", after_the_other_thread)
    assert compare(encoder.encode(states[:40]), right)[0] <= 1e-5
    assert passes == [1]
    assert encoder.choice.engine.name == used.name
    assert not selection.compiled


def test_layers_that_cannot_be_compared_are_not_compiled(llama, monkeypatch, heard):
    """For example because another process has the memory that they need."""
    heard.set_level("INFO", "ebm_encode")
    encoder = Encoder.load(llama)
    selection = encoder.selection

    def failing(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PrefixEngine, "trial", failing)
    assert selection.compiled_candidate() is None
    assert not encoder.selection.compiled
    assert "layers are not compiled" in heard.text
    assert "CUDA out of memory" in heard.text


def test_layers_whose_comparison_is_interrupted_are_not_compiled(llama, monkeypatch):
    encoder = Encoder.load(llama)
    selection = encoder.selection

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(PrefixEngine, "trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        selection.compiled_candidate()
    assert not encoder.selection.compiled


def test_what_was_compared_of_plain_layers_says_nothing_of_compiled_ones(llama):
    encoder = Encoder.load(llama)
    selection, plain = encoder.selection, encoder.choice.engine
    compare_nothing(encoder)
    selection.use(selection.compiled_candidate())
    compared = encoder.choice.compared
    assert not compared.covers(10_000, 0)
    selection.mark_verified(plain, 10_000, 10_000)
    assert encoder.choice.compared == compared
    selection.mark_verified(encoder.choice.engine, 10_000, 10_000)
    assert encoder.choice.compared.covers(10_000, 10_000)


def test_a_resumed_run_compiles_if_the_run_before_did(llama, states, heard, monkeypatch):
    encoder = Encoder.load(llama)
    settings = encoder.settings() | {"max_batch_tokens": 500, "compiled": True}
    assert not encoder.resume(settings)  # a CPU has nothing to take up
    encoder.tuning.wanted = True
    for other in ("identity", "device", "engine"):
        assert not encoder.resume(settings | {other: "another"})
    assert not encoder.resume({"max_batch_tokens": 500})
    assert encoder.budget.tokens == 8192
    assert encoder.resume(settings)
    assert encoder.settings() == settings
    assert compare(encoder.encode(states[:9]), unbatched(llama, states[:9]))[0] <= 1e-5
    torch.compiler.reset()

    def broken(_graph, _inputs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    heard.set_level(logging.INFO, "ebm_encode")
    encoder = Encoder.load(llama)
    encoder.tuning.wanted = True
    assert encoder.resume(settings)  # continues without
    assert not encoder.selection.compiled
    assert "layers are not compiled" in heard.text
    heard.clear()
    encoder = Encoder.load(llama, compile_layers="off")
    encoder.tuning.wanted = True
    assert encoder.resume(settings)
    assert not heard.text  # who says no is not asked


def test_wrong_embeddings_of_compiled_layers_leave_no_settings(
    run_cli, llama, states, tmp_path, monkeypatch
):
    """Else the next run would take them up, and fail as this one did."""
    source, output = tmp_path / "s.jsonl", tmp_path / "o.parquet"
    source.write_text("".join(json.dumps({"state_pp": s}) + "\n" for s in states[:40]))
    init = Encoder.__init__

    def on_a_device(self, *arguments, **options):
        init(self, *arguments, **options)
        self.tuning.wanted = True
        right = self.choice.engine.forward

        def wrong(sequences, slots):
            arrival = right(sequences, slots)
            slots.array[slots.places] *= np.float32(1.001)
            return arrival

        self.choice.engine.forward = wrong
        compare_nothing(self)

    monkeypatch.setattr(Encoder, "__init__", on_a_device)
    arguments = ["encode", "--model-path", llama, "--trajectories", source, "--output", output]
    code, _, err = run_cli(*arguments, "--compile", "on")
    assert (code, "--compile off" in " ".join(err.split())) == (1, True)
    partial = tmp_path / "o.parquet.partial"
    assert (partial / "REJECTED").exists()
    assert not (partial / "settings.jsonl").exists()
