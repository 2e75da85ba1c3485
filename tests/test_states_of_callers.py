"""States in whatever collection a caller holds them, and what in it is not text."""

import re

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from ebm_encode import EmbeddingCache, Encoder, MappedCache
from ebm_encode._core import CachedEncoder
from ebm_encode.errors import ArgumentError

STATES = ["⊢ a", "n : ℕ\n⊢ b", "⊢ c"]


class PandasLike:
    """As a pandas column is where it matters: iterable, no sequence, without a truth value."""

    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return iter(self.values)

    def __len__(self):
        return len(self.values)

    def __bool__(self):
        raise ValueError("The truth value of a Series is ambiguous")

    def tolist(self):
        return [*self.values]


COLLECTIONS = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda states: (state for state in states),
    "dict keys": lambda states: dict.fromkeys(states).keys(),
    "numpy str": np.array,
    "numpy object": lambda states: np.array(states, dtype=object),
    "numpy strings": lambda states: np.array(states, dtype=np.dtypes.StringDType()),
    "numpy scalars": lambda states: [np.str_(state) for state in states],
    "polars": pl.Series,
    "polars categories": lambda states: pl.Series(states, dtype=pl.Categorical),
    "pyarrow": pa.array,
    "pyarrow view": lambda states: pa.array(states, pa.string_view()),
    "pyarrow dictionary": lambda states: pa.array(states).dictionary_encode(),
    "pyarrow chunks": lambda states: pa.chunked_array([states[:1], states[1:]]),
    "pandas": PandasLike,
}


@pytest.fixture(scope="module")
def encoder(llama):
    return Encoder.load(llama)


@pytest.fixture(params=[EmbeddingCache, MappedCache])
def cache(request, tmp_path, encoder, write_cache):
    write_cache(tmp_path / "c.parquet", STATES, encoder.encode(STATES))
    return request.param.open(tmp_path / "c.parquet")


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_any_ordered_collection_is_encoded(encoder, kind):
    make = COLLECTIONS[kind]
    expected = encoder.encode(STATES)
    assert (encoder.encode(make(STATES)) == expected).all()
    out = np.empty_like(expected)
    reports = encoder.encode_into(make(STATES), out)
    assert (out == expected).all()
    assert {report.status for report in reports} == {"ok"}
    answers = CachedEncoder(encoder).encode(make(STATES))
    assert np.allclose(np.stack(answers), expected, atol=1e-5)


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_any_ordered_collection_is_looked_up(cache, kind):
    make = COLLECTIONS[kind]
    assert cache.positions(make(STATES[::-1])).tolist() == [2, 1, 0]
    assert (cache.gather(make(STATES[::-1])) == cache.gather(STATES)[::-1]).all()
    if isinstance(cache, EmbeddingCache):
        assert (np.stack(cache.get_many(make(STATES))) == cache.gather(STATES)).all()


NOT_TEXT = {
    "None": (None, "is None"),
    "NaN": (float("nan"), "is NaN"),
    "number": (3, "is an int"),
    "bytes": (b"a", "is a bytes"),
    "list": (["a"], "is a list"),
    "half a pair": ("\ud835 : Type", r"half of a surrogate pair \(U\+D835 at position 0\)"),
    "half a pair in text": ("⊢ \ud800", r"\(U\+D800 at position 2\)"),
}


@pytest.mark.parametrize("name", NOT_TEXT)
def test_what_is_not_text_is_reported_by_index(encoder, cache, name):
    wrong, reason = NOT_TEXT[name]
    states = ["⊢ a", wrong, "⊢ c"]
    for call in (encoder.encode, cache.gather, cache.positions):
        with pytest.raises(ArgumentError, match=rf"1 of 3 states .* state 1 .*{reason}"):
            call(states)


@pytest.mark.parametrize("name", NOT_TEXT)
def test_what_is_not_text_harms_no_other_state(encoder, name):
    wrong, reason = NOT_TEXT[name]
    states = ["⊢ a", wrong, "⊢ c"]
    expected = encoder.encode(["⊢ a", "⊢ c"])
    out = np.zeros((3, encoder.dim), np.float32)
    reports = encoder.encode_into(states, out)
    assert [report.status for report in reports] == ["ok", "not_text", "ok"]
    assert np.isnan(out[1]).all()
    assert np.allclose(out[[0, 2]], expected, atol=1e-5)
    assert re.search(reason, reports[1].reason)
    first, none, last = CachedEncoder(encoder).encode(states)
    assert none.kind == "not_text"
    assert none.reason == reports[1].reason
    assert np.allclose([first, last], expected, atol=1e-5)


def test_text_of_arrow_that_is_not_utf8_is_reported(encoder):
    raw = pa.array([b"a", b"\xff"]).view(pa.string())
    with pytest.raises(ArgumentError, match="state 1 is not UTF-8"):
        encoder.encode(raw)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("⊢ a", r"one text, expected a list of them\nhint: for one state, `\[state\]`"),
        (b"a", "is bytes"),
        (3, "is an int"),
        (None, "is a NoneType"),
        ({"⊢ a"}, "is a set"),
        ({"⊢ a": 1}, "is a dict"),
        (np.array("⊢ a"), "one ndarray value"),
        (pl.DataFrame({"s": ["⊢ a"]}), "is a DataFrame"),
        (pa.table({"s": ["⊢ a"]}), "is a Table"),
    ],
)
def test_what_is_no_ordered_collection_is_refused(encoder, cache, given, reason):
    out = np.empty((1, encoder.dim), np.float32)
    calls = (
        encoder.encode,
        lambda it: encoder.encode_into(it, out),
        CachedEncoder(encoder).encode,
        cache.gather,
        cache.positions,
    )
    for call in calls:
        with pytest.raises(ArgumentError, match=reason):
            call(given)


def test_nothing_is_encoded_where_a_state_is_not_text(encoder, monkeypatch):
    ran = []
    monkeypatch.setattr(encoder, "encode_into", lambda *_: ran.append(1))
    with pytest.raises(ArgumentError):
        encoder.encode(["⊢ a", None])
    assert not ran
    with pytest.raises(ArgumentError, match="out is a list"):
        Encoder.encode_into(encoder, ["⊢ a"], [[0.0] * encoder.dim])
