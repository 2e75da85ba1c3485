"""Which engine is used on a device: the fastest of the exact ones, measured once and kept.

No device is here. Rates are made up, so only the choice is tested; which engines are exact, and the
embeddings, are real.
"""

import json
import math

import pytest

from ebm_encode import Encoder
from ebm_encode.engines.calibration import Calibration
from ebm_encode.engines.meter import Meter
from ebm_encode.engines.reference import compare
from ebm_encode.engines.selftest import SELF_TEST_PROMPTS
from test_parity import unbatched

AFTER = "ebm_encode.engines.tuning"


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    return tmp_path / "user-cache"


@pytest.fixture
def device(monkeypatch):
    """Makes encoders take this machine for a device on which engines need the seconds given."""
    init = Encoder.__init__

    def make(seconds, of_requests=None, rate=1000.0):
        asked = []

        def measure(engine, tokens, **_):
            asked.append(engine.name)
            few = of_requests if of_requests and len(tokens) <= 32 else seconds
            if isinstance(few[engine.name], Exception):
                raise few[engine.name]
            return few[engine.name]

        def sizes(_, budget, tokens, **__):
            budget.tokens = 4096
            return Calibration(4096, {4096: rate}, sample=tokens)

        def as_on_a_device(self, *arguments, **options):
            init(self, *arguments, **options)
            self.tuning.wanted = True
            self.tuning.start()

        monkeypatch.setattr(f"{AFTER}.seconds_of", measure)
        monkeypatch.setattr(f"{AFTER}.calibrate", sizes)
        monkeypatch.setattr(Encoder, "__init__", as_on_a_device)
        return asked

    return make


SECONDS = {"shared-prefix": 1.0, "packed": 2.0, "padded": 0.5}


def calibrated(folder, states, times=1e6):
    encoder = Encoder.load(folder)
    encoder.calibrate(encoder.prompts.tokenize(states), times=times)
    return encoder


def test_the_fastest_exact_engine_is_used(device, llama, states):
    asked = device(SECONDS)
    encoder = calibrated(llama, states[:60])
    assert encoder.choice.engine.name == "padded"
    assert {*asked} == {*SECONDS}
    assert [own.name for own in encoder.choice.alternatives] == ["shared-prefix", "packed"]
    assert compare(encoder.encode(states[:20]), unbatched(llama, states[:20]))[0] <= 1e-5
    found = encoder.tuning.calibration.to_json()
    assert found["seconds_by_engine"] == SECONDS


def test_the_first_engine_stays_where_others_are_hardly_faster(device, llama, states):
    device(SECONDS | {"padded": 0.99})
    assert calibrated(llama, states[:60]).choice.engine.name == "shared-prefix"


def test_an_engine_that_is_not_exact_is_not_timed(device, make_model, states):
    """Falcon's attention cannot be plugged into: sharing prefixes and packing are refused."""
    asked = device(SECONDS)
    encoder = calibrated(make_model("falcon"), states[:60])
    assert {*asked} == {"padded"}
    assert encoder.choice.engine.name == "padded"


def test_an_engine_that_fails_is_left_out(device, llama, states, heard):
    heard.set_level("INFO", "ebm_encode")
    device(SECONDS | {"padded": RuntimeError("no kernel for this")})
    assert calibrated(llama, states[:60]).choice.engine.name == "shared-prefix"
    assert "engine padded is not timed: RuntimeError: no kernel for this" in heard.text


def test_little_work_is_not_worth_trying_engines(device, llama, states):
    asked = device(SECONDS)
    assert calibrated(llama, states[:60], times=1.0).choice.engine.name == "shared-prefix"
    assert not asked


def test_a_forced_engine_is_not_replaced(device, llama, states):
    device(SECONDS)
    encoder = Encoder.load(llama, engine="packed")
    encoder.calibrate(encoder.prompts.tokenize(states[:60]), times=1e6)
    assert encoder.choice.engine.name == "packed"


def test_a_search_starts_with_what_an_earlier_process_found(device, llama, states):
    requests = SECONDS | {"packed": 0.1}
    device(SECONDS, requests)
    assert Encoder.load(llama).choice.engine.name == "shared-prefix", "nothing is kept yet"
    assert calibrated(llama, states[:60]).choice.engine.name == "padded"
    search = Encoder.load(llama)
    assert search.choice.engine.name == "packed"
    assert search.budget.tokens == 8192, "which was measured for another engine"
    assert compare(search.encode(states[:9]), unbatched(llama, states[:9]))[0] <= 1e-5


def test_a_bulk_run_takes_up_what_was_measured_for_as_much_work(device, llama, states):
    asked = device(SECONDS)
    calibrated(llama, states[:60])
    asked.clear()
    encoder = Encoder.load(llama)
    tokens = encoder.prompts.tokenize(states[:60])
    assert encoder.tuning.resume_kept(tokens, times=1e6)
    assert encoder.choice.engine.name == "padded"
    assert not asked


def test_more_work_than_was_measured_for_is_measured_again(device, llama, states):
    device(SECONDS)
    calibrated(llama, states[:60], times=1.0)
    encoder = Encoder.load(llama)
    tokens = encoder.prompts.tokenize(states[:60])
    assert not encoder.tuning.resume_kept(tokens, times=1e6)
    assert encoder.tuning.resume_kept(tokens, times=1.0)


def test_other_models_devices_and_versions_have_their_own(
    device, llama, make_model, states, monkeypatch
):
    device(SECONDS)
    calibrated(llama, states[:60])
    tokens = Encoder.load(llama).prompts.tokenize(states[:60])
    assert Encoder.load(llama).tuning.resume_kept(tokens)
    assert not Encoder.load(make_model("llama", seed=7)).tuning.resume_kept(tokens)
    monkeypatch.setattr("ebm_encode.encoder.versions", lambda: {"torch": "another"})
    assert not Encoder.load(llama).tuning.resume_kept(tokens)


@pytest.mark.parametrize(
    ("then", "now", "taken"),
    [
        (8e9, 8e9, True),
        (8e9, 7.3e9, True),
        (8e9, 7.1e9, False),
        (8e9, 80e9, True),
        (math.inf, 8e9, True),
        (8e9, math.inf, True),
    ],
)
def test_sizes_are_measured_again_where_less_memory_is_free(
    device, llama, states, monkeypatch, then, now, taken
):
    """The rest of it is another program's by now."""
    device(SECONDS)
    monkeypatch.setattr(Meter, "free", lambda _: then)
    calibrated(llama, states[:60])
    monkeypatch.setattr(Meter, "free", lambda _: now)
    encoder = Encoder.load(llama)
    tokens = encoder.prompts.tokenize(states[:60])
    assert encoder.tuning.resume_kept(tokens, times=1e6) == taken


def test_what_a_restricted_encoder_measured_is_not_for_others(device, llama, states):
    device(SECONDS)
    restricted = Encoder.load(llama, engine="packed")
    tokens = restricted.prompts.tokenize(states[:60])
    restricted.calibrate(tokens, times=1e6)
    assert not Encoder.load(llama).tuning.resume_kept(tokens)
    assert not Encoder.load(llama, batch_size=3).tuning.resume_kept(tokens)
    assert Encoder.load(llama, engine="packed").tuning.resume_kept(tokens)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"settings": 5}', "other"])
def test_damaged_notes_are_measured_again(device, llama, states, own_cache_folder, damage):
    device(SECONDS)
    calibrated(llama, states[:60])
    (note,) = (own_cache_folder / "ebm-encode" / "settings").iterdir()
    if damage == "other":  # of something else, under this name
        whole = json.loads(note.read_bytes())
        whole["applies_to"]["device"] = "another"
        damage = json.dumps(whole).encode()
    note.write_bytes(damage)
    encoder = Encoder.load(llama)
    assert not encoder.tuning.resume_kept(encoder.prompts.tokenize(states[:60]))
    assert encoder.choice.engine.name == "shared-prefix"
    calibrated(llama, states[:60])
    assert json.loads(note.read_bytes())["settings"]["engine"] == "padded"


def test_a_cache_folder_that_cannot_be_written_costs_nothing_else(
    device, llama, states, own_cache_folder, heard
):
    heard.set_level("INFO", "ebm_encode")
    device(SECONDS)
    (own_cache_folder / "ebm-encode").mkdir(parents=True)
    (own_cache_folder / "ebm-encode" / "settings").write_text("a file")
    assert calibrated(llama, states[:60]).choice.engine.name == "padded"
    assert "measured settings are not kept" in heard.text


def test_settings_of_an_engine_that_is_not_exact_any_more_are_not_taken(
    device, llama, states, monkeypatch
):
    device(SECONDS)
    other = Encoder.load(llama)
    settings = calibrated(llama, states[:60]).settings()
    (padded,) = (own for own in other.choice.alternatives if own.name == "padded")
    right = padded.trial

    def wrong(sequences, slots):
        return [own * 1.01 for own in right(sequences, slots)]

    monkeypatch.setattr(padded, "trial", wrong)
    assert not other.resume(settings)
    assert other.choice.engine.name == "shared-prefix"
    assert other.encode(SELF_TEST_PROMPTS[:2]).shape == (2, other.dim)
