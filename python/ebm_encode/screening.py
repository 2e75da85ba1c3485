"""What can be said of prompts before a model runs them."""

import numpy as np
from numpy.typing import NDArray

from ebm_encode.errors import ModelError, TemplateError
from ebm_encode.loading.model import Model
from ebm_encode.prompts.control_tokens import NOT_PLAIN
from ebm_encode.prompts.tokens import Prompts, Tokens
from ebm_encode.reports import RowReport


class Screening:
    """Finds prompts that a model cannot run: too long, empty, with unknown tokens.

    Args:
        model: The model.
        prompts: States to token sequences.

    Raises:
        TemplateError: If the template leaves no room for a state.
    """

    def __init__(self, model: Model, prompts: Prompts) -> None:
        self._name, self._known, self._prompts = model.name, model.vocabulary, prompts
        self._require_room_for_states()

    def screen(self, tokens: Tokens) -> list[RowReport]:
        """A report of each sequence; `ok` for those that can be run."""
        return [self._screen(tokens[i], int(full)) for i, full in enumerate(tokens.full_lengths)]

    def require_known(self, tokens: Tokens) -> None:
        """Refuses a model without embeddings for usual tokens.

        Raises:
            ModelError: If it has none for one of these.
        """
        highest = int(tokens.ids.max(initial=0))
        if highest >= self._known:
            raise ModelError(
                f"{self._name}: tokenizer and model have different vocabulary sizes: the tokenizer"
                f" gives token {highest}, and the model knows {self._known}"
            )

    def _require_room_for_states(self) -> None:
        """With a prompt that is full without a state, all states would be the same."""
        limit, template = self._prompts.max_length, self._prompts.template
        before, after = self._prompts.fixed_tokens()
        if limit is None or before + after < limit:
            return
        where = "before" if before >= limit else "around"
        raise TemplateError(
            f"`template` {template.name}: has {max(before, before + after)} tokens {where} the"
            f" state, special tokens included, and prompts may have {limit} (`max_length`)"
        )

    def _screen(self, sequence: NDArray[np.uint32], full: int) -> RowReport:
        limit, length = self._prompts.max_length, len(sequence)
        if length == 0:
            return RowReport("empty", 0, reason="the prompt has no token")
        highest = int(sequence.max())
        if highest >= self._known:  # on a GPU it would end the process
            return RowReport("unknown_token", full, reason=self._unknown(highest))
        if limit is None or length <= limit:
            return RowReport("ok", full, truncated=full > length)
        reason = f"{full} tokens are more than `max_length` {limit}"
        if self._prompts.cut == "hypotheses":
            reason += ", also without hypotheses"
        return RowReport("overlong", full, reason=reason)

    def _unknown(self, token: int) -> str:
        if token == int(NOT_PLAIN):
            return "the tokenizer reads text of the state as a special token"
        try:
            text = repr(self._prompts.tokenizer.convert_ids_to_tokens(token))
        except (KeyError, IndexError, ValueError, TypeError):
            text = "unknown"
        return f"its token {token} ({text}) has no embedding: the model knows {self._known}"
