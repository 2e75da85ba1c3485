"""The GPU benchmark, cut down and on the CPU: its steps, its figures, its pack of wheels."""

import contextlib
import hashlib
import json
import os
import runpy
import statistics
import subprocess
import sys
import time
import zipfile
from typing import get_args

import pytest

import tiny_model
from ebm_encode.options import EngineName
from ebm_encode.prompts.templates import Template
from support import FILES, ROOT, SAMPLES

GPU = ROOT / "benchmarks" / "gpu"
SESSION = runpy.run_path(str(GPU / "session.py"))
REPORT = runpy.run_path(str(GPU / "report.py"))
CORPUS = runpy.run_path(str(GPU / "corpus.py"))
CHARTS = runpy.run_path(str(ROOT / "benchmarks" / "charts.py"))
ENGINES = {*get_args(EngineName)}
COUNTS = [8, 16]


def command(*arguments):
    whole = [sys.executable, GPU, *map(str, arguments)]
    return subprocess.run(whole, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A small session; one of its architectures does not exist, so one of its steps fails."""
    output = tmp_path_factory.mktemp("gpu") / "gpu.json"
    done = command(
        "measure", output, "--device", "cpu", "--size", "tiny", "--states", *FILES,
        "--counts", *COUNTS, "--calls", 3, "--exact-states", 4,
        "--architectures", "llama", "gpt9", "gpt2",
    )  # fmt: skip
    assert output.exists(), done.stderr
    return done, json.loads(output.read_text())


@pytest.fixture(scope="module")
def sequences():
    """The token ids of the sessions's states, by transformers alone."""
    template = Template.load("deepseek-prover-v2")
    real = CORPUS["real_states"](FILES)
    tokenizer = tiny_model.train_tokenizer(real, 2048)
    tokenizer.add_tokens(template.markers(), special_tokens=True)
    states = CORPUS["sample"](real, max(COUNTS))
    return [tokenizer(template.prompt(state))["input_ids"] for state in states]


def test_tokens_and_flops_are_those_of_independent_counts(measured, sequences):
    _, results = measured
    layers, width, layer_parameters = 2, 64, results["model"]["layer_parameters"]
    assert {one["of_states"] for one in results["speed"]} == {*COUNTS}
    for one in results["speed"]:
        some = sequences[: one["states"]]
        # A trie node is a prefix; a token attends to all tokens of its own.
        nodes = {tuple(own[:end]) for own in some for end in range(1, len(own) + 1)}
        flops = 2 * layer_parameters * len(nodes) + 4 * width * layers * sum(map(len, nodes))
        assert one["states"] == one["of_states"]
        assert (one["tokens"], one["unique_tokens"]) == (sum(map(len, some)), len(nodes))
        seconds = statistics.median(one["rounds_seconds"])
        assert one["states_per_second"] * seconds == pytest.approx(len(some), rel=0.05)
        assert one["tokens_per_second"] * seconds == pytest.approx(one["tokens"], rel=0.05)
        assert one["flops_per_second"] * seconds == pytest.approx(flops, rel=0.05)
        assert one["mfu"] is None
        assert one["peak_bytes"] > 0


def test_every_contender_is_measured_and_gives_the_same_embeddings(measured):
    _, results = measured
    small = {one["contender"] for one in results["speed"] if one["of_states"] == COUNTS[0]}
    assert small >= {
        "ebm-encode", "ebm-encode, compiled layers", "ebm-encode, shared-prefix",
        "ebm-encode, packed", "ebm-encode, padded", "ebm-encode, unbatched", "batch size 1",
        "padded, sorted by length", "the seed's recipe",
    }  # fmt: skip
    assert {one["contender"] for one in results["agreement"]} == small
    assert all(one["relative_error"] < 1e-4 for one in results["agreement"])


def test_every_engine_is_compared_with_plain_transformers(measured):
    _, results = measured
    found = {(one["architecture"], one["engine"]): one for one in results["exactness"]}
    assert {*found} == {(a, engine) for a in ("llama", "gpt2") for engine in ENGINES}
    assert all("refused" in one or one["exact"] for one in found.values())
    assert found["llama", "shared-prefix"]["relative_error"] < 1e-5
    assert found["llama", "auto"]["chosen"] in ENGINES


def test_requests_profile_and_estimate_are_there(measured):
    _, results = measured
    assert [one["states"] for one in results["requests"]] == [1, 8, 32, 64]
    for one in results["requests"]:
        assert 0 < one["median_seconds"] <= one["p99_seconds"] <= one["slowest_seconds"]
    (profile,) = results["profile"]
    assert {"matmul", "idle"} <= {*profile["shares"]}
    assert 0.9 < sum(profile["shares"].values()) < 1.1
    ours = max(
        (one for one in results["speed"] if one["contender"] == "ebm-encode"),
        key=lambda one: one["states"],
    )
    expected = 217_499 / ours["states_per_second"]
    assert results["estimate"]["seconds"] == pytest.approx(expected)
    assert "estimate" in results["estimate"]["method"]


def test_a_step_that_fails_is_told_and_the_others_run(measured):
    done, results = measured
    failed = {step["step"]: step for step in results["steps"] if "error" in step}
    assert "gpt9" in failed["exactness of gpt9 in float32"]["error"]
    assert "exactness of gpt9 in float32" in done.stdout.splitlines()[-1] + done.stdout
    assert {*failed} <= {"exactness of gpt9 in float32"} | {
        f"sentence-transformers, {count} states" for count in COUNTS
    }
    assert (done.returncode, results["complete"]) == (1, True)


def test_the_page_and_the_chart_are_made_from_the_results(measured):
    _, results = measured
    page = CHARTS["BENCHMARKS"].read_text(encoding="utf-8")
    filled = CHARTS["with_section"](page, results)
    assert f"### Speed over {COUNTS[0]} states" in filled
    assert CHARTS["with_section"](filled, None) == CHARTS["with_section"](page, None)
    drawn = REPORT["chart"](results)
    assert drawn["bars"][0]["name"] == "ebm-encode"
    assert drawn["title"] in CHARTS["draw"](drawn, "light")


def test_the_page_shows_what_is_recorded():
    assert CHARTS["BENCHMARKS"].read_text(encoding="utf-8") == CHARTS["page"]()


def test_without_results_the_page_says_not_measured():
    assert REPORT["section"](None).startswith("Not measured")


def test_a_step_without_time_is_skipped_and_told(tmp_path):
    session = SESSION["Session"](tmp_path / "out.json", seconds=0.5)
    assert session.run("long", lambda _: {"a": 1}, section="s", limit=10, least=5) is None
    (step,) = json.loads((tmp_path / "out.json").read_text())["steps"]
    assert step["skipped"].startswith("no time")


def test_a_step_with_nothing_to_measure_is_no_error(tmp_path):
    def refused(_):
        raise SESSION["SkipError"]("not exact")

    session = SESSION["Session"](tmp_path / "out.json", seconds=60)
    session.run("engine", refused, section="s", limit=5)
    (step,) = json.loads((tmp_path / "out.json").read_text())["steps"]
    assert step["skipped"] == "not exact"
    assert "error" not in step


def test_tables_say_of_what_is_missing_that_it_is_not_measured():
    tables = [sheet.markdown() for sheet in REPORT["sheets"]({"steps": []})]
    assert len(tables) == 5
    assert all("not measured" in table for table in tables)


def test_a_step_past_its_limit_ends_and_the_next_one_runs(tmp_path):
    def endless(_):
        while True:
            with contextlib.suppress(Exception):  # as code that goes on whatever happens
                time.sleep(0.01)

    session = SESSION["Session"](tmp_path / "out.json", seconds=60)
    session.run("endless", endless, section="s", limit=0.3, least=0.1)
    session.run("next", lambda seconds: [seconds], section="s", limit=7)
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["steps"][0]["error"].startswith("not finished")
    assert results["s"] == [7]


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    session = SESSION["Session"](tmp_path / "out.json", seconds=60)
    session.run("odd", lambda _: {"a": float("nan"), "b": [1.5]}, section="s", limit=5)
    text = (tmp_path / "out.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["s"] == {"a": None, "b": [1.5]}


def make_wheel(folder, name, version, *needs):
    """A wheel with one module, of which `NAME.py` holds the version."""
    file = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    requires = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name.replace('-', '_')}_made.py", f"VERSION = {version!r}\n")
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return file


@pytest.fixture
def registry(tmp_path):
    """Wheels that uv and pip find instead of a registry's, and our wheel."""
    folder = tmp_path / "registry"
    folder.mkdir()
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    pins = dict(line.split("==") for line in lock if line.count("==") == 1 and ";" not in line)
    for name, needs in {
        "torch": ["of-torch"], "transformers": ["torch"], "pyarrow": [], "of-torch": [],
        "sentence-transformers": ["transformers", "of-peer"], "of-peer": [],
        "of-ours": ["torch", "of-of-ours>=1.5"], "of-of-ours": [], "of-extra": [],
        "matplotlib": ["of-plots"], "of-plots": [],
    }.items():  # fmt: skip
        make_wheel(folder, name, pins.get(name, "2.0"), *needs)
    ours = make_wheel(
        tmp_path, "ebm-encode", "0.1.0",
        "torch", "transformers", "pyarrow", "of-ours>=1", "matplotlib", 'of-extra; extra == "x"',
    )  # fmt: skip
    return ours, ["--find-links", folder]


def names_in(pack):
    return {wheel["name"] for wheel in json.loads((pack / "manifest.json").read_text())["wheels"]}


def test_a_pack_holds_what_a_machine_with_torch_lacks(registry, tmp_path):
    ours, source = registry
    pack = tmp_path / "pack"
    done = command("pack", pack, "--wheel", ours, "--states", *FILES, *source)
    assert done.returncode == 0, done.stderr
    assert names_in(pack) == {
        "ebm-encode", "of-ours", "of-of-ours", "sentence-transformers", "of-peer"
    }  # fmt: skip
    manifest = json.loads((pack / "manifest.json").read_text())
    asked = {wheel["name"]: wheel["asked_for"] for wheel in manifest["wheels"]}
    assert (asked["of-ours"], asked["of-of-ours"]) == (">=1", ">=1.5")
    assert manifest["states"] == 430
    assert (pack / "states.parquet").exists()


def test_a_pack_leaves_out_what_is_present_and_takes_along_what_is_asked_for(registry, tmp_path):
    ours, source = registry
    pack = tmp_path / "pack"
    more = ["--present", "sentence-transformers", "--carry", "transformers"]
    done = command("pack", pack, "--wheel", ours, *more, *source)
    assert done.returncode == 0, done.stderr
    assert names_in(pack) == {"ebm-encode", "of-ours", "of-of-ours", "transformers"}


def test_a_pack_that_is_too_large_is_refused_with_the_largest(registry, tmp_path):
    ours, source = registry
    with zipfile.ZipFile(ours, "a") as archive:
        archive.writestr("large.bin", os.urandom(65 * 2**20))
    done = command("pack", tmp_path / "pack", "--wheel", ours, *source)
    assert done.returncode == 2
    assert "ebm-encode (65.0 MiB)" in done.stderr
    assert "hint: " in done.stderr


def described(wheel, **changes):
    name, version = wheel.name.split("-")[:2]
    return {
        "file": wheel.name, "name": name.replace("_", "-"), "version": version, "asked_for": "",
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
    } | changes  # fmt: skip


@pytest.fixture
def small_pack(tmp_path):
    """A pack with a new package, one that is there, and one that is there but too old."""
    pack = tmp_path / "pack"
    pack.mkdir()
    wheels = [
        described(make_wheel(pack, "quite-new", "1.0")),
        described(make_wheel(pack, "packaging", "9999.0"), asked_for=">=20"),
        described(make_wheel(pack, "numpy", "9999.0"), asked_for=">=9999"),
    ]
    (pack / "manifest.json").write_text(json.dumps({"wheels": wheels}))
    return pack


def test_only_what_lacks_or_is_too_old_is_installed(small_pack, tmp_path):
    done = command("install", small_pack, "--target", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    made = {file.name for file in (tmp_path / "site").glob("*_made.py")}
    assert made == {"quite_new_made.py", "numpy_made.py"}
    assert "1 there already: packaging" in done.stdout


def test_a_damaged_wheel_is_not_installed(small_pack, tmp_path):
    with (small_pack / "quite_new-1.0-py3-none-any.whl").open("ab") as file:
        file.write(b"x")
    done = command("install", small_pack, "--target", tmp_path / "site")
    assert done.returncode == 2
    assert "quite_new-1.0-py3-none-any.whl: damaged" in done.stderr
    assert not (tmp_path / "site").exists()


def test_nothing_that_a_pack_leaves_out_is_imported():
    """What the measurement imports, in a new process."""
    modules = [file.stem for file in GPU.glob("*.py") if file.stem != "__main__"]
    code = (
        f"import sys; sys.path.insert(0, {str(GPU)!r}); import ebm_encode.encoder, pack;"
        f" [__import__(name) for name in {modules!r}];"
        "print([n for n in pack.NOT_IMPORTED if n.replace('-', '_') in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_samples_are_spread_and_made_distinct_states_share_as_real_ones():
    real = CORPUS["real_states"](sorted(SAMPLES.glob("*.parquet")))
    more = CORPUS["enough"](real, 3 * len(real) - 5)
    assert len({*more}) == len(more) == 3 * len(real)
    assert {state.partition("\n")[2] for state in more if state.startswith("h✝2")} == {*real}
    chosen = CORPUS["sample"](real, 100)
    assert len({*chosen}) == 100
    places = sorted(real.index(state) for state in chosen)
    assert places[0] < len(real) / 4
    assert places[-1] > len(real) * 3 / 4
    assert CORPUS["blocks"](real, 64)[:32] == real[:32]
