"""Tactics of a causal model: their log-probabilities are those of plain forward passes."""

import json
import shutil
import threading
import time

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ebm_encode import Encoder
from ebm_encode.errors import ArgumentError, ModelError, TemplateError
from ebm_encode.policy.decoding import AbandonedError, uniforms_of
from ebm_encode.policy.tactics import TacticPolicy

# Space-like endings are frequent in what a random model writes.
STOP = ("e", "n", "\n", "∀")


@pytest.fixture(scope="module")
def policy(llama):
    return TacticPolicy.load(llama)


@pytest.fixture(scope="module")
def plain(llama):
    """Model and tokenizer of plain transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(llama)


def drawn(plain, state, numbers, *, temperature, top_p, stop):
    """One sample at batch size 1, without a cache: its text, and its log-probability."""
    model, tokenizer = plain
    ids = tokenizer(state)["input_ids"]
    start, total = len(ids), 0.0
    for number in numbers:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        own = torch.log_softmax(logits, dim=-1).numpy()
        shares = torch.softmax(logits / temperature, dim=-1).numpy()
        order = np.argsort(-shares, kind="stable")
        # The fewest most probable tokens that make up the share.
        count = int(np.searchsorted(np.cumsum(shares[order]), top_p)) + 1
        kept = np.zeros_like(shares)
        kept[order[:count]] = shares[order[:count]]
        ends = np.cumsum(kept)
        ids.append(int(np.searchsorted(ends, number * ends[-1], side="right")))
        total += own[ids[-1]]
        text = tokenizer.decode(ids[start:])
        if ids[-1] == tokenizer.eos_token_id or any(s in text for s in stop):
            return until_stop(text.removesuffix("</s>"), stop), total
    return None, total


def until_stop(text, stop):
    return min((text.split(s)[0] for s in stop), key=len).strip()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.3, 0.8)])
def test_samples_are_those_of_plain_forward_passes(policy, plain, states, temperature, top_p):
    found = policy.propose(
        states[:12],
        n=3,
        temperature=temperature,
        top_p=top_p,
        stop=STOP,
        max_new_tokens=24,
        seed=7,
    )
    for state, proposal in zip(states[:12], found, strict=True):
        expected, unfinished = {}, 0
        for numbers in uniforms_of(state, 7, (3, 24)):
            tactic, log_prob = drawn(
                plain, state, numbers, temperature=temperature, top_p=top_p, stop=STOP
            )
            unfinished += tactic is None
            if tactic:
                expected[tactic] = max(expected.get(tactic, -np.inf), log_prob)
        assert dict(proposal.tactics) == pytest.approx(expected, abs=1e-3)
        assert proposal.unfinished == unfinished
        log_probs = [log_prob for _, log_prob in proposal.tactics]
        assert log_probs == sorted(log_probs, reverse=True)
        assert all(log_prob <= 0 for log_prob in log_probs)


def test_beams_are_those_of_transformers_at_batch_size_1(policy, plain, states):
    model, tokenizer = plain
    stop = STOP[0]
    for state, proposal in zip(
        states[:8],
        policy.propose(states[:8], n=4, mode="beam", stop=[stop], max_new_tokens=16),
        strict=True,
    ):
        ids = torch.tensor([tokenizer(state)["input_ids"]])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=4,
            num_return_sequences=4,
            length_penalty=0.0,
            do_sample=False,
            max_new_tokens=16,
            stop_strings=[stop],
            tokenizer=tokenizer,
            output_scores=True,
            return_dict_in_generate=True,
            pad_token_id=1,
        )
        expected = {}
        for new, score in zip(output.sequences, output.sequences_scores, strict=True):
            text = tokenizer.decode(new[ids.shape[1] :]).split("</s>")
            if len(text) > 1 or stop in text[0]:
                tactic = until_stop(text[0], [stop])
                expected[tactic] = max(expected.get(tactic, -np.inf), float(score))
        expected.pop("", None)
        assert expected
        assert dict(proposal.tactics) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("mode", ["sample", "beam"])
def test_what_a_state_gets_does_not_depend_on_the_others(policy, states, mode):
    options = {"n": 4, "mode": mode, "stop": STOP, "max_new_tokens": 16}
    some = states[:30]
    together = policy.propose(some, **options)
    for state, proposal in zip(some, together, strict=True):
        (alone,) = policy.propose([state], **options)
        assert dict(alone.tactics) == pytest.approx(dict(proposal.tactics), abs=1e-3)
    backwards = policy.propose([*some[::-1], some[0]], **options)
    for a, b in zip(backwards, [*together[::-1], together[0]], strict=True):
        assert dict(a.tactics) == pytest.approx(dict(b.tactics), abs=1e-3)


def test_the_seed_decides(policy, states):
    options = {"n": 4, "stop": STOP}
    first = policy.propose(states[:4], seed=1, **options)
    assert policy.propose(states[:4], seed=1, **options) == first
    assert policy.propose(states[:4], seed=2, **options) != first


@pytest.mark.parametrize(
    "architecture",
    ["gpt2", "qwen3", "gemma2", "gemma3_text", "bloom", "mpt", "falcon", "opt", "mamba", "mamba2"],
)
def test_other_architectures(make_model, states, architecture):
    """Learned positions, ALiBi, sliding windows, softcaps, and states instead of keys."""
    folder = make_model(architecture)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain = model, transformers.AutoTokenizer.from_pretrained(folder)
    policy = TacticPolicy.load(folder)
    some = [*sorted(states, key=len)[:3], *states[:3]]
    for state, proposal in zip(
        some, policy.propose(some, n=2, seed=3, stop=STOP, max_new_tokens=12), strict=True
    ):
        expected = [
            drawn(plain, state, numbers, temperature=1.0, top_p=1.0, stop=STOP)
            for numbers in uniforms_of(state, 3, (2, 12))
        ]
        found = {tactic: log_prob for tactic, log_prob in expected if tactic}
        assert dict(proposal.tactics) == pytest.approx(found, abs=2e-3)


def test_16_bits(make_model, states):
    folder = make_model("llama")
    found = TacticPolicy.load(folder, dtype="bfloat16").propose(states[:10], n=4, stop=STOP)
    assert all(np.isfinite(log_prob) for p in found for _, log_prob in p.tactics)
    assert sum(len(p.tactics) for p in found) > 10


def test_states_without_tactics_say_why(llama, policy, states):
    long = "n : ℕ " * 3000
    found = policy.propose([states[0], long, None, "⊢ True"], stop=STOP)
    assert [p.reason is None for p in found] == [True, False, False, True]
    assert "more than" in found[1].reason
    assert not found[1].tactics
    assert "None" in found[2].reason
    (cut,) = policy.propose(["⊢ True"], n=2, stop=["no such text"], max_new_tokens=2)
    assert cut.unfinished == 2
    assert not cut.tactics
    assert "`max_new_tokens` 2" in cut.reason
    small = TacticPolicy.load(llama, max_length=40)
    (full,) = small.propose(["⊢ True"], max_new_tokens=39)
    assert "`max_new_tokens` 39" in full.reason


def test_small_batches_give_the_same(llama, policy, states):
    options = {"n": 4, "stop": STOP, "max_new_tokens": 16}
    small = TacticPolicy.load(llama, max_sequences=4)
    for a, b in zip(
        small.propose(states[:6], **options), policy.propose(states[:6], **options), strict=True
    ):
        assert dict(a.tactics) == pytest.approx(dict(b.tactics), abs=1e-3)


def test_settings_of_the_folder_for_chats_change_nothing(llama, policy, states, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    own = {"repetition_penalty": 5.0, "do_sample": True, "top_k": 1, "temperature": 0.1}
    (folder / "generation_config.json").write_text(json.dumps(own | {"eos_token_id": [1]}))
    options = {"n": 4, "stop": STOP}
    found = TacticPolicy.load(str(folder)).propose(states[:4], **options)
    assert found == policy.propose(states[:4], **options)


def test_all_tokens_that_end_a_text_end_a_tactic(llama, states, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    ends = [*range(1, 2048, 2)]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    encoder = Encoder.load(str(folder), keep_head=True)
    options = {"n": 8, "stop": [], "max_new_tokens": 64}
    first = TacticPolicy.beside(encoder).propose(states[:8], **options)
    assert sum(p.unfinished for p in first) == 0
    assert any(p.tactics for p in first)
    # A second policy over the same weights has the same settings, and does not wait for the first.
    assert TacticPolicy.beside(encoder).propose(states[:8], **options) == first


def test_a_stop_of_several_tokens_ends_a_tactic(policy, plain):
    _, tokenizer = plain
    options = {"n": 32, "max_new_tokens": 40, "stop": ["ro", "∀ x"]}
    (found,) = policy.propose(["⊢ True"], **options)
    assert len(tokenizer("∀ x", add_special_tokens=False)["input_ids"]) > 1
    assert all("ro" not in tactic and "∀ x" not in tactic for tactic, _ in found.tactics)


def test_an_encoder_and_a_policy_share_weights_and_run_at_once(llama, policy, states):
    encoder = Encoder.load(llama, keep_head=True)
    beside = TacticPolicy.beside(encoder)
    shared = {p.data_ptr() for p in encoder.model.base.parameters()}
    assert shared <= {p.data_ptr() for p in beside.model.whole.parameters()}
    rows = Encoder.load(llama).encode(states[:60])
    options = {"n": 4, "stop": STOP, "max_new_tokens": 16}
    tactics = policy.propose(states[:20], **options)
    right = {"rows": [], "tactics": []}

    def encode():
        off = np.abs(encoder.encode(states[:60]) - rows).max()
        right["rows"].append(bool(off <= 1e-4 * np.abs(rows).max()))

    def propose():
        found = zip(beside.propose(states[:20], **options), tactics, strict=True)
        same = [dict(a.tactics) == pytest.approx(dict(b.tactics), abs=1e-3) for a, b in found]
        right["tactics"].append(all(same))

    over = threading.Event()
    threads = [threading.Thread(target=repeat, args=(run, over)) for run in (encode, propose)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 120
    while time.monotonic() < end and min(map(len, right.values())) < 5:
        time.sleep(0.1)
    over.set()
    for thread in threads:
        thread.join()
    assert all(right["rows"] + right["tactics"])
    assert min(map(len, right.values())) >= 5, "one of them waited for the other"


def repeat(run, over):
    while not over.is_set():
        run()


def test_nobody_waits(policy, states):
    asked = iter([False, False, True])
    with pytest.raises(AbandonedError):
        policy.propose(states[:2], stop=["no such text"], abandoned=lambda: next(asked, True))
    assert policy.propose(states[:2], stop=STOP)[0].tactics


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"mode": "best"},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"max_new_tokens": 0},
        {"stop": "\n"},
        {"stop": [""]},
    ],
)
def test_options_without_meaning_are_refused(policy, wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        policy.propose(["⊢ True"], **wrong)


def encoder_decoder(llama, folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    shape = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(vocab_size=len(tokenizer), **shape)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_models_without_a_head_are_refused(llama, tmp_path):
    with pytest.raises(ArgumentError, match="keep_head"):
        TacticPolicy.beside(Encoder.load(llama))
    with pytest.raises(ModelError, match="encoder-decoder"):
        TacticPolicy.load(encoder_decoder(llama, tmp_path / "t5"))
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    Encoder.load(str(folder))
    with pytest.raises(ModelError, match="randomly initialised"):
        TacticPolicy.load(str(folder))
    with pytest.raises(TemplateError):
        TacticPolicy.load(llama, template="no such template")


def test_weights_that_are_not_finite_are_refused(llama, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="no finite log-probability"):
        TacticPolicy.load(str(folder))
