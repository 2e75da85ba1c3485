"""Requests made from the server's own OpenAPI document: each gets an answer that it promises."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from served import served

OPERATIONS = {
    ("POST", "/encode"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/health"),
    ("GET", "/info"),
    ("GET", "/metrics"),
}


@pytest.fixture(scope="module")
def operations(llama):
    with served(llama) as server:
        document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        found = [result.ok() for result in document.get_all_operations()]
        yield {(own.method.upper(), own.path): own for own in found}


def test_the_document_has_every_endpoint(operations):
    assert {*operations} == OPERATIONS


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_answers_are_those_of_the_document(operations, operation, mode):
    modes = {"positive": schemathesis.GenerationMode.POSITIVE}
    modes["negative"] = schemathesis.GenerationMode.NEGATIVE
    own = operations[operation]
    if mode == "negative" and operation[0] == "GET":
        mode = "positive"  # there is nothing in such a request that could be wrong

    @given(data=st.data())
    @settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
    def check(data):
        data.draw(own.as_strategy(generation_mode=modes[mode])).call_and_validate()

    check()
