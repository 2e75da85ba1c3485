"""Memory borrowed from a server comes back to it, by whichever way the block ends."""

import pynvml
import pytest

from ebm_encode.errors import ServerError, UnsafeServerError
from ebm_encode.servers.guard import ServerGuard


@pytest.fixture(scope="module")
def llama64(make_model):
    return make_model("llama", head_dim=64)


def able(kind):
    return {"memory_saver": True, "dev_mode": True} if kind == "vllm" else {"memory_saver": True}


def guard(stand_in, url, **options):
    return ServerGuard(
        url,
        free_memory=lambda: stand_in.status()["free_memory"],
        **{"patience": 3.0, "needed": 1} | options,
    )


def asked(stand_in):
    return [r["path"] for r in stand_in.requests() if r["method"] == "POST"]


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_memory_is_given_back_and_taken_again(stand_in, llama64, kind):
    url = stand_in.play(kind, llama64, **able(kind))
    before = stand_in.status()["free_memory"]
    with guard(stand_in, url):
        assert stand_in.status()["free_memory"] > before
    assert stand_in.status()["free_memory"] == before
    assert not stand_in.status()["dead"]


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt, SystemExit])
def test_memory_is_taken_again_whatever_happens(stand_in, llama64, kind, end):
    url = stand_in.play(kind, llama64, **able(kind))
    before = stand_in.status()["free_memory"]
    with pytest.raises(end), guard(stand_in, url):
        raise end
    assert stand_in.status()["free_memory"] == before
    assert not stand_in.status()["dead"]


def test_sglang_keeps_its_weights_unless_it_has_a_copy(stand_in, llama64):
    for backup, tags in [(False, ["kv_cache"]), (True, ["kv_cache", "weights"])]:
        url = stand_in.play("sglang", llama64, memory_saver=True, cpu_backup=backup)
        with guard(stand_in, url):
            pass
        bodies = [r["body"] for r in stand_in.requests() if "memory_occupation" in r["path"]]
        assert [body["tags"] for body in bodies] == [tags, tags]


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("sglang", {}, "--enable-memory-saver"),
        ("sglang-old", {}, "--enable-memory-saver"),
        ("vllm", {}, "VLLM_SERVER_DEV_MODE"),
        ("vllm", {"dev_mode": True}, "--enable-sleep-mode"),
    ],
)
def test_a_server_that_cannot_is_left_alone(stand_in, llama64, kind, settings, said):
    url = stand_in.play(kind, llama64, **settings)
    with pytest.raises(UnsafeServerError, match=said):
        guard(stand_in, url).release()
    assert asked(stand_in) == []


def test_a_busy_sglang_is_not_asked_for_memory(stand_in, llama64):
    url = stand_in.play("sglang", llama64, memory_saver=True, running=2)
    with pytest.raises(ServerError, match="still works on 2 requests"):
        guard(stand_in, url, patience=0.5).release()
    assert asked(stand_in) == []


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_what_says_200_and_does_nothing_is_refused(stand_in, llama64, kind):
    url = stand_in.play(kind, llama64, defect="no_effect", **able(kind))
    with pytest.raises(UnsafeServerError, match="0 MiB are free now"):
        guard(stand_in, url).release()
    assert not stand_in.status()["dead"], "sglang ends if it is resumed without cause"


def test_without_a_gpu_nothing_is_tried(stand_in, llama64, monkeypatch):
    def none():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", none)
    url = stand_in.play("sglang", llama64, memory_saver=True)
    with pytest.raises(ServerError, match="cannot be measured"):
        ServerGuard(url).release()
    assert asked(stand_in) == []


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_memory_is_taken_again_if_it_can_no_longer_be_measured(stand_in, llama64, kind):
    url = stand_in.play(kind, llama64, **able(kind))
    before = stand_in.status()["free_memory"]
    measured = []

    def once():
        measured.append(1)
        if len(measured) > 1:
            raise ServerError("the driver is gone")
        return before

    with pytest.raises(ServerError, match="the driver is gone"):
        ServerGuard(url, patience=3.0, needed=1, free_memory=once).release()
    assert stand_in.status()["free_memory"] == before


def test_it_gives_its_memory_once(stand_in, llama64):
    url = stand_in.play("sglang", llama64, memory_saver=True)
    with guard(stand_in, url) as own:
        own.release()
    assert [path for path in asked(stand_in) if path.startswith("/release")] == [
        "/release_memory_occupation"
    ]
