"""The encoder: reports, refusals, faults, memory."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import processors

from ebm_encode import Encoder
from ebm_encode.engines.output import Pass
from ebm_encode.engines.padded import UnbatchedEngine
from ebm_encode.engines.reference import compare
from ebm_encode.errors import ArgumentError, BadRowsError, EncodingError, ModelError
from support import compare_everything, compare_nothing, first_copied, zero_tail


@pytest.fixture
def encoder(llama):
    return Encoder.load(llama, batch_size=8)


def spoil(encoder, monkeypatch, fault, *, unbatched=False):
    """Puts a fault between the engine's embeddings and everyone else."""
    engine = encoder.selection.unbatched.engine if unbatched else encoder.choice.engine
    right = engine.forward

    def forward(sequences, slots):
        arrival = right(sequences, slots)
        slots.array[slots.places] = fault(slots.array[slots.places])
        return arrival

    monkeypatch.setattr(engine, "forward", forward)


def last_copied(rows):
    rows[:] = rows[-1]
    return rows


def one_nan(rows):
    rows[len(rows) // 2, 3] = np.nan
    return rows


def one_inf(rows):
    rows[0, -1] = np.inf
    return rows


@pytest.mark.parametrize("fault", [zero_tail, first_copied, last_copied, one_nan, one_inf])
def test_faults_of_a_batch_are_found_and_mended(encoder, states, monkeypatch, fault):
    some = states[:40]
    right = encoder.encode(some)
    spoil(encoder, monkeypatch, fault)
    assert compare(encoder.encode(some), right)[0] <= 1e-5


def test_a_state_that_is_bad_also_unbatched_is_reported(encoder, states, monkeypatch):
    spoil(encoder, monkeypatch, one_nan)
    spoil(encoder, monkeypatch, one_nan, unbatched=True)
    with pytest.raises(BadRowsError, match=r"state \d \(.*NaN in column 3"):
        encoder.encode(states[:8])


def test_encode_into_reports_and_poisons_what_is_not_right(encoder, states, monkeypatch):
    spoil(encoder, monkeypatch, one_nan)
    spoil(encoder, monkeypatch, one_nan, unbatched=True)
    compare_nothing(encoder)
    out = np.zeros((8, encoder.dim), np.float32)
    reports = encoder.encode_into(states[:8], out)
    bad = [i for i, report in enumerate(reports) if report.status == "bad"]
    assert len(bad) == 1
    assert np.isnan(out[bad]).all()
    assert np.isfinite(np.delete(out, bad, axis=0)).all()


def test_embeddings_go_into_the_callers_memory(encoder, states):
    buffer = np.zeros((10, encoder.dim), np.float32)
    address = buffer.ctypes.data
    encoder.encode_into(states[:4], buffer[3:7])
    assert buffer.ctypes.data == address
    assert (buffer[3:7] == encoder.encode(states[:4])).all()
    assert not buffer[:3].any()
    assert not buffer[7:].any()


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, 64), np.float64),
        np.empty((3, 64), np.float32),
        np.empty((2, 63), np.float32),
        np.empty((64, 2), np.float32).T,
        np.broadcast_to(np.float32(0), (2, 64)),
    ],
)
def test_memory_that_does_not_fit_is_refused(encoder, out):
    with pytest.raises(ArgumentError, match="out"):
        encoder.encode_into(["a", "b"], out)


def test_nothing_in_nothing_out(encoder):
    assert encoder.encode([]).shape == (0, 64)


def test_equal_tokens_give_equal_embeddings_without_complaint(make_model, states):
    encoder = Encoder.load(make_model(), max_length=12, overlong="truncate")
    same_start = [states[0] + "x" * i for i in range(5)]
    embeddings = encoder.encode(same_start)
    assert (embeddings == embeddings[0]).all()


def test_a_prompt_without_tokens_is_reported(make_model, tmp_path):
    folder = Path(make_model())
    copy = tmp_path / "no-begin"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    bare = transformers.AutoTokenizer.from_pretrained(copy)
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    bare.save_pretrained(copy)
    with pytest.raises(EncodingError, match="no token"):
        Encoder.load(str(copy)).encode(["a", ""])


class _Limited:
    """Runs out of memory above a number of tokens, as a device would."""

    def __init__(self, engine, tokens):
        self.size, self.forward = engine.size, engine.forward
        self.tokens, self.refused, self.largest = tokens, 0, 0

    def __call__(self, sequences, slots):
        size = self.size(sequences)
        if size > self.tokens:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.largest = max(self.largest, size)
        return self.forward(sequences, slots)


def test_out_of_memory_splits_batches_and_remembers(llama, states, monkeypatch):
    encoder = Encoder.load(llama)
    right = encoder.encode(states)
    limited = _Limited(encoder.choice.engine, 1200)
    monkeypatch.setattr(encoder.choice.engine, "forward", limited)
    assert compare(encoder.encode(states), right)[0] <= 1e-5
    assert limited.largest <= 1200
    first = limited.refused
    assert 0 < first < 10, "the safe budget is remembered"


@pytest.mark.parametrize("also_unbatched", [True, False])
def test_one_text_that_never_fits_is_isolated(llama, states, monkeypatch, also_unbatched):
    """Unless it fits unbatched, which can take less memory."""
    encoder = Encoder.load(llama)
    by_length = sorted(states, key=len)
    some = [*by_length[:5], by_length[-1]]
    right = encoder.encode(some)
    most = int(encoder.prompts.tokenize(some).lengths[-1]) - 1
    reference = [encoder.selection.unbatched.engine] if also_unbatched else []
    for engine in (encoder.choice.engine, *reference):
        monkeypatch.setattr(engine, "forward", _Limited(engine, most))
    out = np.empty((6, encoder.dim), np.float32)
    reports = encoder.encode_into(some, out)
    last = "out_of_memory" if also_unbatched else "ok"
    assert [report.status for report in reports] == ["ok"] * 5 + [last]
    assert np.isnan(out[5]).all() if also_unbatched else compare(out, right)[0] <= 1e-5


def fail(*_, **__):
    raise RuntimeError("shapes cannot be multiplied")


def test_a_model_that_fails_unbatched_too_is_an_error(encoder, states, monkeypatch):
    monkeypatch.setattr(encoder.model.base, "forward", fail)
    with pytest.raises(
        ModelError, match=r"model fails on its .* tokens, unbatched too \(RuntimeError: sh"
    ):
        encoder.encode(states[:2])
    assert encoder.choice.engine.name == "shared-prefix"


def test_an_engine_that_fails_where_the_model_does_not_is_left(llama, states, monkeypatch, heard):
    encoder = Encoder.load(llama)
    right = encoder.encode(states[:20])
    monkeypatch.setattr(encoder.choice.engine, "forward", fail)
    assert compare(encoder.encode(states[:20]), right)[0] <= 1e-5
    assert encoder.choice.engine.name == "packed"
    assert "shared-prefix failed where each sequence succeeds unbatched" in heard.text
    forced = Encoder.load(llama, engine="packed")
    monkeypatch.setattr(forced.choice.engine, "forward", fail)
    with pytest.raises(ModelError, match=r"`engine` packed: .*shapes cannot be multiplied"):
        forced.encode(states[:2])


def test_an_engine_is_dropped_also_where_some_texts_do_not_fit_unbatched(
    llama, states, monkeypatch
):
    """Of these nothing is known, so that the next engine is not tried on them beforehand."""
    encoder = Encoder.load(llama)
    some = sorted(states, key=len)[-3:]
    right = encoder.encode(some)
    monkeypatch.setattr(encoder.choice.engine, "forward", fail)
    plan, limited = encoder.choice.engine.plan, _Limited(encoder.selection.unbatched.engine, 0)
    first = encoder.prompts.tokenize(some)[plan(encoder.prompts.tokenize(some))[0][0]]
    sizes = encoder.selection.unbatched.engine.size
    limited.size = lambda sequences: int(np.array_equal(sequences[0], first))
    monkeypatch.setattr(encoder.selection.unbatched.engine, "forward", limited)
    assert sizes([first]) == len(first)
    assert compare(encoder.encode(some), right)[0] <= 1e-5
    assert limited.refused
    assert encoder.choice.engine.name == "packed"


def fails_on_the_shortest(encoder, states, monkeypatch):
    """Makes the reference fail on one state, of which the engine makes an embedding."""
    shortest = min(states, key=lambda state: len(encoder.prompts.tokenize([state]).ids))
    ids = encoder.prompts.tokenize([shortest])[0]
    reference = encoder.selection.unbatched.engine

    def failing(run):
        return lambda sequences, *rest: (
            fail() if np.array_equal(sequences[0], ids) else run(sequences, *rest)
        )

    for name in ("forward", "states"):
        monkeypatch.setattr(reference, name, failing(getattr(reference, name)))
    return shortest


def test_a_state_that_the_reference_fails_on_has_no_embedding(llama, states, monkeypatch):
    """The reference makes no embedding; and what cannot be compared is not exact."""
    encoder = Encoder.load(llama)
    some = sorted(states)[:40]
    right = encoder.encode(some)
    shortest = fails_on_the_shortest(encoder, some, monkeypatch)
    compare_everything(encoder)
    out = np.empty((40, encoder.dim), np.float32)
    reports = encoder.encode_into(some, out)
    bad = [some[i] for i, report in enumerate(reports) if report.status == "bad"]
    assert bad == [shortest]
    assert "shapes cannot be multiplied" in reports[some.index(shortest)].reason
    kept = [i for i, report in enumerate(reports) if report.status == "ok"]
    assert compare(out[kept], right[kept])[0] <= 1e-5


def test_one_state_at_a_time_a_fault_that_comes_and_goes_is_an_error(llama, states, monkeypatch):
    """There is no engine to go on with, and going on with this one might never end."""
    encoder = Encoder.load(llama)
    engine, selection, calls = encoder.selection.unbatched.engine, encoder.selection, []
    selection.choice = replace(encoder.choice, engine=engine, alternatives=())
    forward = engine.forward

    def failing_first(sequences, slots):
        calls.append(1)
        return fail() if len(calls) == 1 else forward(sequences, slots)

    monkeypatch.setattr(engine, "forward", failing_first)
    with pytest.raises(ModelError, match=r"batch size 1 failed .*shapes cannot be multiplied"):
        encoder.encode(states[:2])


def test_what_a_device_tells_late_is_a_failed_pass(llama, states, monkeypatch):
    encoder = Encoder.load(llama)
    right = encoder.encode(states[:20])
    monkeypatch.setattr(encoder.choice.engine, "forward", lambda _, slots: Pass(slots, fail))
    assert compare(encoder.encode(states[:20]), right)[0] <= 1e-5
    assert encoder.choice.engine.name == "packed"


def test_what_is_refused_stays_so_by_the_next_engine(llama, states, monkeypatch):
    """The next engine's embeddings of that batch need not be compared again."""
    encoder = Encoder.load(llama)
    choice, selection = encoder.choice, encoder.selection
    some = sorted(states)[:40]
    selection.choice = replace(choice, alternatives=choice.alternatives[-1:])
    shortest = fails_on_the_shortest(encoder, some, monkeypatch)
    forward = choice.engine.forward

    def wrong(sequences, slots):
        arrival = forward(sequences, slots)
        slots.array[slots.places] *= np.float32(1.01)
        return arrival

    monkeypatch.setattr(choice.engine, "forward", wrong)
    compare_everything(encoder)
    reports = encoder.encode_into(some, np.empty((40, encoder.dim), np.float32))
    assert encoder.choice.engine.name == "padded"
    assert [some[i] for i, report in enumerate(reports) if report.status == "bad"] == [shortest]


def edited(folder, tmp_path, edit):
    """A copy of a model with edited weights."""
    copy = tmp_path / "edited"
    copy.mkdir()
    for file in Path(folder).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = load_file(copy / "model.safetensors")
    edit(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return str(copy)


def test_nan_weights_make_no_embedding(llama, tmp_path, states):
    def edit(weights):
        weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")

    encoder = Encoder.load(edited(llama, tmp_path, edit))
    assert "not finite even unbatched" in encoder.choice.reason
    with pytest.raises(ModelError, match="no finite embedding"):
        encoder.encode(states[:3])


def test_missing_weights_are_not_made_up(llama, tmp_path):
    def edit(weights):
        del weights["model.layers.1.mlp.up_proj.weight"]

    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        Encoder.load(edited(llama, tmp_path, edit))


def test_any_change_of_weights_changes_the_identity(llama, tmp_path):
    def edit(weights):
        weights["model.norm.weight"][0] += 1e-3

    before = Encoder.load(llama).identity
    after = Encoder.load(edited(llama, tmp_path, edit)).identity
    assert [field for field, *_ in before.differences(after)] == ["weights"]
    assert before.digest != after.digest


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"dtype": "bfloat16"}, "dtype"),
        ({"pooling": "last"}, "pooling"),
        ({"layer": -2}, "layer"),
        ({"template": "deepseek-prover-v2"}, "template"),
    ],
)
def test_any_option_that_changes_numbers_changes_the_identity(llama, options, field):
    plain, changed = Encoder.load(llama).identity, Encoder.load(llama, **options).identity
    assert [name for name, *_ in plain.differences(changed)] == [field]


def test_another_longest_length_is_another_encoder_where_prompts_are_cut(llama):
    def cut(length):
        return Encoder.load(llama, max_length=length, overlong="truncate").identity

    assert [name for name, *_ in cut(100).differences(cut(99))] == ["max_length"]


def test_the_same_model_elsewhere_has_the_same_identity(llama, tmp_path):
    assert Encoder.load(llama).identity == Encoder.load(edited(llama, tmp_path, dict)).identity
    assert Encoder.load(llama, batch_size=1).identity == Encoder.load(llama).identity


def test_models_that_cannot_be_used_are_refused(tmp_path, llama):
    with pytest.raises(ModelError, match=r"no config\.json"):
        Encoder.load(str(tmp_path))
    with pytest.raises(ModelError, match="no such folder"):
        Encoder.load(str(tmp_path / "missing"))
    with pytest.raises(ModelError, match="Hub"):
        Encoder.load("nobody/no-such-model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    for file in ("tokenizer.json", "model.safetensors"):
        (tmp_path / file).touch()
    with pytest.raises(ModelError, match="cannot be loaded"):
        Encoder.load(str(tmp_path))
    with pytest.raises(ModelError, match="`layer` 9"):
        Encoder.load(llama, layer=9)
    with pytest.raises(ModelError, match="`device` nonsense"):
        Encoder.load(llama, device="nonsense")
    with pytest.raises(ArgumentError, match="dtype 'bf16'"):
        Encoder.load(llama, dtype="bf16")
    with pytest.raises(ArgumentError, match="one text"):
        Encoder.load(llama).encode("ab")
    with pytest.raises(ArgumentError, match="pooling"):
        Encoder.load(llama, pooling="max")


def test_truncated_weights_are_refused(llama, tmp_path):
    copy = tmp_path / "cut"
    copy.mkdir()
    for file in Path(llama).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        Encoder.load(str(copy))


class _Device:
    """Stands for a device that is told what to do and does it later, at the latest when awaited."""

    def __init__(self, engine):
        self.right, self.told, self.most = engine.forward, 0, 0

    def __call__(self, sequences, slots):
        self.told += 1
        self.most = max(self.most, self.told)

        def finish():
            self.told -= 1
            self.right(sequences, slots).wait()

        return Pass(slots, finish)


@pytest.mark.parametrize("max_batch_tokens", [500, 100_000])
def test_a_device_has_the_next_batch_while_one_is_in_use(
    llama, states, monkeypatch, max_batch_tokens
):
    encoder = Encoder.load(llama, max_batch_tokens=max_batch_tokens, batch_size=1000)
    right = encoder.encode(states)
    device = _Device(encoder.choice.engine)
    monkeypatch.setattr(encoder.choice.engine, "forward", device)
    assert (encoder.encode(states) == right).all()
    assert device.most == (2 if max_batch_tokens == 500 else 1)
    tokens = encoder.prompts.tokenize(states)
    passes = encoder.runner.run(tokens, wanted=lambda batch: 0 in batch)
    found = {
        i: own for done in passes for i, own in zip(done.indices, done.embeddings, strict=True)
    }
    assert 0 in found
    assert all((own == right[i]).all() for i, own in found.items())


def test_what_a_device_gets_wrong_is_found_although_it_is_a_batch_ahead(
    llama, states, monkeypatch, heard
):
    encoder = Encoder.load(llama, max_batch_tokens=500)
    right = encoder.encode(states)
    device = _Device(encoder.choice.engine)
    original = device.right

    def wrong(sequences, slots):
        arrival = original(sequences, slots)
        slots.array[slots.places] *= np.float32(1.01)
        return arrival

    device.right = wrong
    compare_everything(encoder)
    monkeypatch.setattr(encoder.choice.engine, "forward", device)
    assert compare(encoder.encode(states), right)[0] <= 1e-5
    assert "from now on" in heard.text


def test_an_engine_is_not_refused_where_nothing_can_be_run_unbatched(llama, states, monkeypatch):
    encoder = Encoder.load(llama)
    engine = encoder.choice.engine
    right = encoder.encode(states[:5])

    def fail(*_):
        raise RuntimeError("no kernel")

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "forward", fail)
        patch.setattr(UnbatchedEngine, "forward", no_memory)
        out = np.empty((5, encoder.dim), np.float32)
        reports = encoder.encode_into(states[:5], out)
    assert {report.status for report in reports} == {"out_of_memory"}
    assert encoder.choice.engine is engine
    assert np.array_equal(encoder.encode(states[:5]), right)
