"""Templates and special tokens."""

import logging

import numpy as np
import pytest
import transformers
from tokenizers import processors

from ebm_encode import Encoder
from ebm_encode.errors import ArgumentError, EncodingError, TemplateError
from ebm_encode.prompts.templates import Template
from ebm_encode.prompts.tokens import Prompts


def prompts(tokenizer, text="{state}", max_length=None):
    return Prompts(tokenizer, Template("test", text), max_length)


def test_the_begin_token_comes_once_whether_or_not_the_template_spells_it(tokenizer):
    begin = tokenizer.bos_token_id
    plain = prompts(tokenizer).tokenize(["⊢ True"])[0].tolist()
    spelled = prompts(tokenizer, "<s>{state}").tokenize(["⊢ True"])[0].tolist()
    assert plain == spelled == tokenizer("⊢ True")["input_ids"]
    assert plain.count(begin) == 1


def test_an_end_token_comes_once(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    ending = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    plain = prompts(ending).tokenize(["⊢ True"])[0].tolist()
    assert prompts(ending, "<s>{state}</s>").tokenize(["⊢ True"])[0].tolist() == plain
    assert (plain[0], plain[-1], plain.count(1)) == (0, 1, 1)


def test_a_state_may_stand_in_a_template_more_than_once_and_hold_braces():
    template = Template("twice", "{x} {state} and {state}")
    assert template.prompt("{state} {0}") == "{x} {state} {0} and {state} {0}"


def test_the_deepseek_template_is_the_provers():
    prompt = Template.load("deepseek-prover-v2").prompt("⊢ True")
    assert prompt == (
        "<｜begin▁of▁sentence｜><｜User｜>Complete the following Lean 4 code:\n\n```lean4\n"
        "/- tactic state:\n⊢ True\n-/\n```<｜Assistant｜>"
    )


def test_markers_that_the_tokenizer_does_not_know_are_reported(tokenizer, llama, caplog):
    assert prompts(tokenizer, "<s>{state}</s>").unknown_markers() == []
    lost = prompts(tokenizer, "｜begin▁of▁sentence｜｜User｜{state}").unknown_markers()
    assert lost == ["｜begin▁of▁sentence｜", "｜User｜"]
    caplog.set_level("WARNING")
    logging.getLogger("ebm_encode").propagate = True
    Encoder.load(llama, template="deepseek-prover-v2")
    assert "<｜User｜> is no special token" in caplog.text


def test_a_template_file_counts_byte_for_byte(tmp_path):
    file = tmp_path / "template.txt"
    file.write_bytes(b"a\r\n{state}\n")
    assert Template.load(str(file)).prompt("s") == "a\r\ns\n"


@pytest.mark.parametrize("content", [b"no place", b"\xff{state}", None])
def test_bad_templates_are_refused(tmp_path, content):
    file = tmp_path / "template.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TemplateError, match=r"template\.txt"):
        Template.load(str(file))


def test_lengths_before_and_after_the_cut(tokenizer, states):
    long = max(states, key=len)
    whole = prompts(tokenizer).tokenize([long])
    cut = prompts(tokenizer, max_length=7).tokenize([long])
    assert cut[0].tolist() == whole[0].tolist()[:7]
    assert cut.full_lengths.tolist() == whole.lengths.tolist()
    assert len(prompts(tokenizer).tokenize([])) == 0


def test_overlong_states_are_truncated_skipped_or_refused(llama, states):
    long, short = max(states, key=len), "⊢ True"
    out = np.empty((2, 64), np.float32)
    cutting = Encoder.load(llama, max_length=20, overlong="truncate")
    reports = cutting.encode_into([long, short], out)
    assert [(r.status, r.truncated) for r in reports] == [("ok", True), ("ok", False)]
    skipping = Encoder.load(llama, max_length=20, overlong="skip")
    reports = skipping.encode_into([long, short], out)
    assert [report.status for report in reports] == ["overlong", "ok"]
    for refusing in (skipping, Encoder.load(llama, max_length=20)):
        with pytest.raises(EncodingError, match="more than `max_length` 20"):
            refusing.encode([long])


def test_truncation_is_part_of_the_identity_only_where_it_happens(llama):
    def fields(**options):
        return Encoder.load(llama, **options).identity

    cut = {"overlong": "truncate"}
    twenty, thirty = fields(max_length=20, **cut), fields(max_length=30, **cut)
    assert twenty.differences(thirty)[0][0] == "max_length"
    assert fields(max_length=20, overlong="skip") == fields(max_length=30, overlong="error")


@pytest.mark.parametrize("length", [0, 5000])
def test_lengths_that_the_model_cannot_have_are_refused(llama, length):
    with pytest.raises(ArgumentError, match="max_length"):
        Encoder.load(llama, max_length=length)
