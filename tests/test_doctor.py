"""`ebm-encode doctor` on servers of all kinds, right ones and wrong ones."""

import json

import pytest

from ebm_encode.cli import main
from served import served


@pytest.fixture(scope="module")
def llama64(make_model):
    return make_model("llama", head_dim=64)


@pytest.fixture
def verdict(capsys):
    """The exit code and the verdict on a server."""

    def examine(url, *options):
        code = main(["doctor", "--server", url, "--json", *options])
        out = capsys.readouterr().out
        return code, json.loads(out) if out else None

    return examine


def answers(found):
    return {finding["question"]: finding["answer"] for finding in found["findings"]}


def test_a_good_sglang_can_be_used_though_others_get_cut_rows(stand_in, llama64, verdict):
    for more in ([], ["--model-path", llama64, "--dtype", "float32"]):
        code, found = verdict(stand_in.play("sglang", llama64), *more)
        assert (code, found["kind"], found["safe"]) == (0, "sglang", True)
        assert answers(found)["the same prompt again"].endswith("cut: the last 1 of 12 rows")
        assert answers(found)["a batch of six, as ebm-encode asks"] == "right"
    sent = {r["path"] for r in stand_in.requests() if r["method"] == "POST"}
    assert sent == {"/generate"}, "nothing that changes the server"


def test_an_old_sglang_is_sent_nothing_unless_nobody_else_uses_it(stand_in, llama64, verdict):
    url = stand_in.play("sglang-old", llama64)
    code, found = verdict(url)
    assert (code, found["safe"]) == (1, False)
    assert not any(r["method"] == "POST" for r in stand_in.requests())
    code, found = verdict(url, "--server-exclusive")
    assert code == 0
    assert "another prompt's" in " ".join(answers(found).values()) or "cut" in str(found)
    assert any("nobody else uses it" in reason for reason in found["not_asked"])


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        ("zeros", "rows are zero"),
        ("foreign_tail", "another prompt's"),
        ("cut_silently", "cut: the last"),
        ("empty", "no rows"),
        ("nan", "not finite"),
        ("swapped", "another prompt's"),
        ("gone", "went away"),
        ("error_500", "500"),
        ("not_json", "no JSON"),
        ("missing_item", "answers 5 of 6 prompts"),
        ("hang", "did not answer within"),
    ],
)
def test_what_is_wrong_is_named(stand_in, llama64, verdict, defect, said):
    url = stand_in.play("sglang", llama64, defect=defect, seconds=5)
    code, found = verdict(url, "--model-path", llama64, "--dtype", "float32", "--timeout", "0.8")
    assert (code, found["safe"]) == (1, False)
    assert said in " ".join(answers(found).values())


def test_settings_are_judged(stand_in, llama64, verdict):
    for info in (
        {"quantization": "fp8"},
        {"speculative_algorithm": "EAGLE"},
        {"enable_return_hidden_states": False, "return_hidden_states_mode": None},
    ):
        code, found = verdict(stand_in.play("sglang", llama64, info=info))
        assert code == 1
        assert found["findings"][0]["advice"]
    url = stand_in.play("sglang", llama64, model_info={"is_generation": False})
    assert main(["doctor", "--server", url]) == 1
    code, found = verdict(stand_in.play("sglang", llama64, chunk=60))
    assert code == 0
    assert not found["findings"][-1]["right"]
    assert "chunked-prefill-size" in found["findings"][-1]["advice"]


def test_vllm_is_told_by_how_it_pools(stand_in, llama64, verdict):
    model = ["--model-path", llama64, "--dtype", "float32"]
    assert verdict(stand_in.play("vllm", llama64), *model)[0] == 0
    for settings, said in [
        ({"pooling": "last"}, "the last token's state"),
        ({"defect": "wrong_dimension"}, ""),
        ({"defect": "asleep", "seconds": 3}, ""),
    ]:
        url = stand_in.play("vllm", llama64, **settings)
        code, found = verdict(url, *model, "--timeout", "0.8")
        assert code == 1
        assert said in str(found)
    code, found = verdict(stand_in.play("vllm", llama64))
    assert code == 1, "without the model nobody knows how it pools"
    assert "--model-path" in str(found)


def test_our_own_server_and_others(llama, make_model, verdict, capsys):
    with served(llama) as server:
        assert verdict(server.url)[0] == 0
        assert verdict(server.url, "--model-path", llama)[0] == 0
        code, found = verdict(server.url, "--model-path", make_model("llama", seed=5))
        assert code == 1
        assert not found["findings"][-1]["right"]
        assert main(["doctor", "--server", server.url]) == 0
        out = capsys.readouterr().out
        assert "is remote" in out
        assert "verdict: can be used" in out
    assert main(["doctor", "--server", server.url]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert main(["doctor", "--server", "nonsense"]) == 2
