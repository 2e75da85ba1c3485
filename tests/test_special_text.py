"""Special tokens come from the template and the tokenizer, never from a state's text."""

import copy
import threading
import warnings

import numpy as np
import pytest

from ebm_encode import Encoder
from ebm_encode.prompts.templates import Template
from ebm_encode.prompts.tokens import Prompts
from tokenizers_of_all_kinds import all_kinds, byt5

TEMPLATES = [
    "{state}",
    "<s>[{state}]</s>",
    "goal:\n{state}\n-/ ",
    "<s> {state}",
    "({state}|{state})",
]
KINDS = [
    *("byte-level", "byte-level, both ends", "byte-level, nothing added"),
    *("byte-level, spaces added", "byte-level, a marker that is not special"),
    *("byte fallback", "unigram", "word pieces", "words", "byt5"),
]
SPELLING = [
    *("</s>", "<s>⊢ True", "x </s> y", "⊢ True</s>", "<s></s><s>", "a <unk> b", "⊢ f </s>\n<s>"),
    *("s>", "/s>", "<", "</", "<s", "x\ue0001\ue001 <s>"),
]


@pytest.fixture(scope="module")
def kinds(states, tmp_path_factory):
    return all_kinds(states[:150], tmp_path_factory.mktemp("tokenizers"))


def prompts(tokenizer, text="{state}", max_length=None, **options):
    return Prompts(tokenizer, Template("test", text), max_length, **options)


def by_transformers(tokenizer, prompt, template):
    """The ids by the plain tokenizer; what the template spells is not added again."""
    with warnings.catch_warnings(action="ignore"):  # ByT5 warns of the one that is there
        whole, usual = tokenizer(prompt)["input_ids"], tokenizer("a")["input_ids"]
    begins = usual[0] == tokenizer.bos_token_id and template.startswith("<s>")
    # ByT5's tokenizer itself adds no second one.
    ends = whole[-2:] == [tokenizer.eos_token_id] * 2 and template.endswith("</s>")
    return whole[1 if begins else 0 : len(whole) - (1 if ends else 0)]


@pytest.mark.parametrize("text", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_without_special_text_has_the_ids_of_the_whole_prompt(kinds, states, kind, text):
    tokenizer, template = kinds[kind], Template("test", text)
    some = [*states[:40], "a", " a ", "  two", "ℕ", "\n\n"]
    ours = prompts(tokenizer, text).tokenize(some)
    for i, state in enumerate(some):
        prompt = template.prompt(state)
        assert ours[i].tolist() == by_transformers(tokenizer, prompt, text), state


def control_ids(tokenizer):
    thinking = tokenizer.added_tokens_encoder.get("<think>")
    return {*tokenizer.all_special_ids, thinking} - {tokenizer.unk_token_id, None}


@pytest.mark.parametrize("text", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_special_text_of_a_state_is_text(kinds, kind, text):
    tokenizer = kinds[kind]
    control = control_ids(tokenizer)

    def control_of(ids):
        return [number for number in ids.tolist() if number in control]

    usual = prompts(tokenizer, text).tokenize(["a"])[0]
    spelling = [*SPELLING, *(["x <think> y"] if "not special" in kind else [])]
    some = prompts(tokenizer, text).tokenize(spelling)
    for i, state in enumerate(spelling):
        assert control_of(some[i]) == control_of(usual), state


@pytest.mark.parametrize(
    "kind", ["byte-level", "byte-level, spaces added", "byte fallback", "byt5"]
)
def test_no_letter_of_special_text_is_lost(kinds, kind):
    tokenizer = kinds[kind]
    states = SPELLING[:-1]
    some = prompts(tokenizer, "({state}").tokenize(states)
    for i, state in enumerate(states):
        own = [number for number in some[i].tolist() if number not in control_ids(tokenizer)]
        text = tokenizer.decode(own, clean_up_tokenization_spaces=False)
        assert text.strip() == f"({state}".strip()


def test_two_states_of_which_one_spells_the_begin_token_are_two(llama):
    encoder = Encoder.load(llama)
    rows = encoder.encode(["<s>⊢ True", "⊢ True"])
    assert not np.allclose(rows[0], rows[1])
    ids = encoder.prompts.tokenize(["x </s> y"])[0].tolist()
    assert encoder.model.tokenizer.eos_token_id not in ids


def test_a_template_may_end_where_a_state_goes_on_to_a_marker(tokenizer):
    """`<` of the template and `/s>` of the state are no end token either."""
    ids = prompts(tokenizer, "a <{state}").tokenize(["/s> b"])[0].tolist()
    assert tokenizer.eos_token_id not in ids


def test_a_tokenizer_that_splits_its_special_tokens_does_so_everywhere(tokenizer):
    splitting = copy.deepcopy(tokenizer)
    splitting.split_special_tokens = True
    ids = prompts(splitting, "<s>{state}").tokenize(["x </s> y"])[0].tolist()
    assert ids == splitting("<s>x </s> y")["input_ids"]


def test_the_tokenizer_of_the_model_may_be_used_by_others(llama, states):
    """It cuts for whoever asks it to; the encoder's prompts stay whole."""
    encoder = Encoder.load(llama)
    right = encoder.prompts.tokenize(states[:64])
    shared = encoder.model.tokenizer
    stop = threading.Event()

    def cut():
        while not stop.is_set():
            shared(states[:4], truncation=True, max_length=4)

    threads = [threading.Thread(target=cut) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        found = [encoder.prompts.tokenize(states[:64]) for _ in range(60)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert all(np.array_equal(tokens.ids, right.ids) for tokens in found)


def test_a_tokenizer_in_python_that_cannot_be_copied_is_used_as_it_is(tmp_path):
    tokenizer = byt5(tmp_path)
    tokenizer.lock = threading.Lock()  # as code that comes with a model may have
    ids = prompts(tokenizer).tokenize(["⊢ True", "</s>"])
    assert ids[0].tolist() == tokenizer("⊢ True")["input_ids"]
    assert ids[1].tolist() == [*tokenizer("<")["input_ids"][:-1], 50, 118, 65, 1]
