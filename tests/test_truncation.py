"""Prompts that are too long: cut as transformers cuts them, or by hypotheses, and never unsaid."""

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors

from ebm_encode import Encoder
from ebm_encode.engines.reference import compare
from ebm_encode.errors import EncodingError, TemplateError
from ebm_encode.prompts.templates import Template
from ebm_encode.prompts.tokens import Prompts
from tokenizers_of_all_kinds import all_kinds

ENDS = {"begin": "<s> $A", "end": "$A </s>", "both": "<s> $A </s>", "none": "$A"}


@pytest.fixture(scope="module")
def kinds(states, tmp_path_factory):
    return all_kinds(states[:150], tmp_path_factory.mktemp("tokenizers"))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("longest", [3, 10, 40])
def test_cut_prompts_are_those_of_transformers(kinds, states, longest, side):
    for name, tokenizer in kinds.items():
        tokenizer.truncation_side = side
        try:
            right = tokenizer(states[:60], truncation=True, max_length=longest)["input_ids"]
            ours = Prompts(tokenizer, Template("raw", "{state}"), longest).tokenize(states[:60])
        finally:
            tokenizer.truncation_side = "right"
        assert [ours[i].tolist() for i in range(60)] == right, name
        assert (ours.full_lengths > longest).any()


@pytest.fixture(params=ENDS)
def ending(request, make_model, tmp_path):
    """A model whose tokenizer adds special tokens at some ends."""
    source = make_model("llama")
    folder = tmp_path / request.param
    transformers.AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=ENDS[request.param], special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_cut_prompts_have_the_embeddings_of_transformers(ending, states, pooling):
    long = sorted(states, key=len)[-12:]
    encoder = Encoder.load(str(ending), max_length=40, overlong="truncate", pooling=pooling)
    model = transformers.AutoModelForCausalLM.from_pretrained(ending).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(ending)
    right = []
    for state in long:
        inputs = tokenizer(state, return_tensors="pt", truncation=True, max_length=40)
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).hidden_states[-1][0]
        right.append(hidden.mean(dim=0) if pooling == "mean" else hidden[-1])
    assert compare(encoder.encode(long), torch.stack(right).numpy())[0] <= 1e-5


def test_an_end_token_that_the_template_spells_stays_too(tokenizer, states):
    text = "<s>{state}</s>"
    ending = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    ours = Prompts(ending, Template("t", text), 20).tokenize(states[:20])
    right = ending(states[:20], truncation=True, max_length=20)["input_ids"]
    assert [ours[i].tolist() for i in range(20)] == right


def test_states_that_are_too_long_are_refused_unless_something_else_is_said(llama, states):
    long, short = max(states, key=len), "⊢ True"
    encoder = Encoder.load(llama, max_length=20)
    assert encoder.overlong == "error"
    with pytest.raises(EncodingError, match=r"more than `max_length` 20[\s\S]*hint: .*truncate"):
        encoder.encode([short, long])
    out = np.empty((2, 64), np.float32)
    reports = encoder.encode_into([long, short], out)
    assert [report.status for report in reports] == ["overlong", "ok"]
    assert np.isnan(out[0]).all()


GOALS = """case h.inl
α : Type u_1
inst✝ : CommRing α
I J : Ideal α
h : I ≤
    J
x : α
⊢ x ∈ I →
    x ∈ J

case h.inr
β : Type u_2
⊢ True"""


def shortened(encoder, state):
    """The text that a shortened state's tokens are of."""
    ids = encoder.prompts.tokenize([state])[0].tolist()
    return encoder.prompts.tokenizer.decode(ids[1:])


def test_hypotheses_go_first_to_last_and_goals_stay(llama):
    whole = len(Encoder.load(llama).prompts.tokenize([GOALS])[0])
    lines = GOALS.split("\n")
    last_goal = {11}  # its hypothesis goes first, then those of the first goal, in their order
    expected = [last_goal]
    for more in ({1}, {2}, {3}, {4, 5}, {6}):
        expected.append(expected[-1] | more)
    texts = {"\n".join(t for i, t in enumerate(lines) if i not in gone) for gone in expected}
    seen = set()
    for longest in range(whole - 1, 10, -1):
        encoder = Encoder.load(llama, max_length=longest, overlong="truncate-state")
        tokens = encoder.prompts.tokenize([GOALS])
        if len(tokens[0]) > longest:  # the goals by themselves are too long
            report = encoder.screen(tokens)[0]
            assert (report.status, "also without hypotheses" in report.reason) == ("overlong", True)
            break
        assert encoder.screen(tokens)[0].truncated
        seen.add(shortened(encoder, GOALS))
    else:
        pytest.fail("goals were cut")
    assert seen == texts


def test_no_more_hypotheses_go_than_must(llama, states):
    prompts = Encoder.load(llama, max_length=100, overlong="truncate-state").prompts
    template = Template("around", "goal: {state}\n-/ end")
    around = Prompts(prompts.tokenizer, template, 100, cut="hypotheses")
    tail = prompts.tokenizer("\n-/ end", add_special_tokens=False)["input_ids"][-2:]
    cut = 0
    for some in (prompts, around):
        tokens = some.tokenize(states)
        for i, state in enumerate(states):
            if tokens.full_lengths[i] <= 100:
                assert len(tokens[i]) == tokens.full_lengths[i]
            elif len(tokens[i]) <= 100:
                cut += 1
                text = some.tokenizer.decode(tokens[i].tolist())
                goals = [g[g.index("⊢") :] for g in state.split("\n\n") if "⊢" in g]
                assert all(goal in text for goal in goals)
                if some is around:
                    assert tokens[i].tolist()[-2:] == tail
    assert cut > 20


def test_a_text_without_a_goal_has_no_hypotheses(llama):
    encoder = Encoder.load(llama, max_length=20, overlong="truncate-state")
    text = "\n".join(f"line {i} of a text" for i in range(30))
    assert encoder.screen(encoder.prompts.tokenize([text]))[0].status == "overlong"


def test_shortened_states_have_the_embedding_of_the_shorter_text(llama, states):
    long = sorted(states, key=len)[-30:]
    encoder = Encoder.load(llama, max_length=150, overlong="truncate-state")
    out = np.empty((len(long), 64), np.float32)
    reports = encoder.encode_into(long, out)
    cut = [i for i, report in enumerate(reports) if report.truncated]
    assert cut
    texts = [shortened(encoder, long[i]) for i in cut]
    assert compare(out[cut], Encoder.load(llama).encode(texts))[0] <= 1e-5


def test_each_way_to_cut_is_another_encoder(llama, ending):
    ways = {
        way: Encoder.load(llama, max_length=50, overlong=way).identity
        for way in ("error", "skip", "truncate", "truncate-state")
    }
    assert ways["error"] == ways["skip"]
    assert len({identity.digest for identity in ways.values()}) == 3
    kept = Encoder.load(str(ending), max_length=50, overlong="truncate").identity
    right = "right, special tokens kept" if ending.name in ("end", "both") else "right"
    assert f'"truncation":"{right}"' in kept.to_json()


@pytest.mark.parametrize("overlong", ["error", "skip", "truncate", "truncate-state"])
def test_a_longest_length_without_room_for_a_state_is_refused(llama, overlong, tmp_path):
    with pytest.raises(TemplateError, match="have 1 "):
        Encoder.load(llama, max_length=1, overlong=overlong)
    assert Encoder.load(llama, max_length=2, overlong=overlong)
    template = tmp_path / "around.txt"
    template.write_text("{state} and a long text that comes after it, which may be cut")
    if overlong == "truncate":  # of this prompt the state's tokens are the first
        assert Encoder.load(llama, template=str(template), max_length=4, overlong=overlong)
    else:
        with pytest.raises(TemplateError, match="tokens around the state"):
            Encoder.load(llama, template=str(template), max_length=4, overlong=overlong)


def test_states_that_became_equal_by_cutting_are_told(llama, heard):
    encoder = Encoder.load(llama, max_length=30, overlong="truncate")
    start = "x y z " * 20
    texts = [f"{start}a", "⊢ True", f"{start}b", f"{start}a", "⊢ True"]
    reports = encoder.encode_into(texts, np.empty((5, 64), np.float32))
    assert [report.same_as for report in reports] == [None, None, 0, None, None]
    assert "1 states have the embedding of another state" in heard.text
