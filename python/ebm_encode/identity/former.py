"""Caches whose identity is in the form of an earlier version.

Their embeddings are this encoder's wherever a state's tokens are the same by the former rule and by
the present one: that is, unless its text holds special tokens or its prompt was cut.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ebm_encode import _core
from ebm_encode._core import Identity
from ebm_encode.errors import EbmEncodeError, IdentityMismatchError
from ebm_encode.identity.identity import former_longest, is_former_form
from ebm_encode.prompts.tokens import Prompts
from ebm_encode.state_formats import without_format


def former_identity(cache: str, present: Identity) -> Identity | None:
    """The identity of a cache, if it is `present` in the form of an earlier version.

    Raises:
        EbmEncodeError: If the cache cannot be read.
    """
    former = _identity_of(cache)
    return former if former is not None and is_former_form(former, present) else None


def as_given_identity(cache: str, present: Identity) -> Identity | None:
    """The identity of a cache, if it is `present` over states as they are given.

    Its embeddings of texts that are in the format of `present` are those of `present`.

    Raises:
        EbmEncodeError: If the cache cannot be read.
    """
    found, plain = _identity_of(cache), without_format(present)
    return found if found == plain and plain != present else None


def _identity_of(cache: str) -> Identity | None:
    footers = [description["footer"] for description in _core.describe(cache)]
    texts = {json.dumps(footer["identity"], sort_keys=True) if footer else "" for footer in footers}
    return None if len(texts) != 1 or texts == {""} else Identity.from_json(texts.pop())


def with_the_same_tokens(prompts: Prompts, states: Sequence[str], former: Identity) -> list[str]:
    """The states whose embeddings in a cache with the identity `former` are this encoder's."""
    now = prompts.tokenize(states)
    before = prompts.as_before(states, longest=former_longest(former))
    return [state for i, state in enumerate(states) if np.array_equal(now[i], before[i])]


@contextmanager
def with_a_hint(output: str, present: Identity) -> Iterator[None]:
    """Adds a hint to a refusal of an output that an earlier version made with the same encoder."""
    try:
        yield
    except IdentityMismatchError as error:
        try:
            former = former_identity(output, present)
        except EbmEncodeError:
            former = None
        if former is None:
            raise
        raise IdentityMismatchError(
            f"{error}\nhint: an earlier version made it with the same model and options. Write to"
            f" another --output and add --cache {output}: the embeddings of all states whose tokens"
            " are the same are reused"
        ) from error
