"""`Accept`, by the rules and examples of RFC 9110, section 12.5.1."""

import pytest

from ebm_encode.serve.accept import chosen_form
from ebm_encode.serve.forms import ARROW, JSON, RAW


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ([], JSON),
        ([""], JSON),
        (["*/*"], JSON),
        ([RAW], RAW),
        ([f"{ARROW}, {RAW}"], ARROW),
        ([f"{RAW}, {ARROW}"], RAW),
        ([f"{ARROW};q=0, {JSON}"], JSON),
        ([f"{RAW};q=0.1, {JSON};q=1.0"], JSON),
        ([f"{RAW};q=0.1", f"{ARROW};q=0.2"], ARROW),
        ([f"{JSON};q=0"], None),
        (["text/html, */*;q=0"], None),
        (["text/html"], None),
        ([f"{JSON};q=0, */*"], ARROW),
        ([f"application/*;q=0.2, {RAW};q=0.1"], JSON),
        ([f"*/*, {RAW}"], RAW),
        ([f"{RAW.upper()} ; Q=1.000"], RAW),
        ([f"{RAW};q=2, {JSON};q=0.001"], JSON),
        ([f'text/x;a="{RAW},{ARROW}", {JSON}'], JSON),
        # The examples of the RFC: the nearest range decides.
        (["audio/*; q=0.2, audio/basic"], None),
        (["text/plain; q=0.5, text/html, text/x-dvi; q=0.8, text/x-c"], None),
        (["text/*;q=0.3, text/plain;q=0.7, text/plain;format=flowed, */*;q=0.5"], JSON),
    ],
)
def test_the_form_that_is_liked_most_is_chosen(accept, form):
    assert chosen_form(accept) == form
