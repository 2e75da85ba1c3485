"""An examination of a SGLang server."""

import random
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode.doctor.diagnosis import Diagnosis, Finding
from ebm_encode.doctor.rows import NEAR, NEAR_FLOAT32, name_rows
from ebm_encode.errors import ServerError, UnsafeServerError
from ebm_encode.servers.sglang.info import OWN_ROWS, SglangInfo, read_info, refusals
from ebm_encode.servers.sglang.replies import request_body
from ebm_encode.servers.sglang.transport import Transport

Sequence32 = NDArray[np.uint32]
StatesOf = Callable[[Sequence32], NDArray[np.float32]]
"""The hidden states of token ids by the model itself, float32 `[tokens, dim]`."""

_IDS = range(10, 250)
"""Token ids that any vocabulary has."""
LENGTHS = (12, 40, 64, 27, 50, 33)
"""Tokens of the prompts that servers are asked."""
_LONGEST_PROBE = 16_384


def examine_sglang(
    transport: Transport,
    *,
    exclusive: bool,
    states_of: StatesOf | None,
    dtype: str | None,
) -> Diagnosis:
    """Asks as other clients do and as this package does, and names what comes back.

    Old versions may end when they are asked, or mix people's rows; they are asked only if nobody
    else uses them.

    Args:
        transport: The way to the server.
        exclusive: Whether nobody else uses it, as the user says.
        states_of: The model, if there is one to compare with; otherwise answers are compared with
            one another.
        dtype: The compute dtype of that model.
    """
    info = read_info(transport.get, transport.where)
    about = {"version": str(info.version), "model_path": info.model_path, "dtype": info.dtype}
    found = Diagnosis(transport.where, "sglang", about | info.settings)
    for reason in refusals(info, dtype=dtype, exclusive=exclusive):
        what, _, advice = reason.partition("\nhint: ")
        found.findings.append(Finding("its version and settings", what, right=False, advice=advice))
    if not found.findings:
        found.findings.append(Finding("its version and settings", "can be used", right=True))
        _Examination(transport, info, found, states_of, dtype).run()
    else:
        found.not_asked.append("nothing was sent: its settings rule it out")
    return found


class _Examination:
    def __init__(
        self,
        transport: Transport,
        info: SglangInfo,
        found: Diagnosis,
        states_of: StatesOf | None,
        dtype: str | None,
    ) -> None:
        self._near = NEAR_FLOAT32 if dtype == "float32" else NEAR
        self._transport, self._info, self._found = transport, info, found
        self._rng = random.SystemRandom()
        # All of them together are computed in one part.
        most = (info.chunk or sum(LENGTHS)) // len(LENGTHS)
        self._prompts = [self._prompt(max(2, min(length, most))) for length in LENGTHS]
        self._states: list[NDArray[np.float32]] = []
        self._states_of = states_of

    def run(self) -> None:
        """All questions; what a server that goes away leaves unasked is said."""
        try:
            self._know()
            self._ask_plainly()
            self._ask_as_we_do()
            self._ask_long()
        except (ServerError, UnsafeServerError) as error:
            self._add("requests for hidden states", str(error).partition("\n")[0], right=False)

    def _know(self) -> None:
        """The right states: the model's, or each prompt's by itself."""
        if self._states_of is not None:
            self._states = [self._states_of(prompt) for prompt in self._prompts]
            return
        self._found.not_asked.append(
            "how its states compare with the model's: give --model-path to know"
        )
        for prompt in self._prompts:
            rows = self._generate([prompt], cured=True)[0]
            if len(rows) != len(prompt):
                raise UnsafeServerError(
                    f"gives {len(rows)} rows for a prompt of {len(prompt)} tokens by itself"
                )
            self._states.append(rows)

    def _ask_plainly(self) -> None:
        advice = (
            "ebm-encode keeps its prompts out of the prefix cache; other clients need"
            " --disable-radix-cache"
        )
        first = [0]
        self._question("one prompt, as most clients ask", first, cured=False, advice=advice)
        self._question("the same prompt again", first, cured=False, advice=advice)
        batch = [*range(len(self._prompts))]
        self._question("a batch of six, as most clients ask", batch, cured=False, advice=advice)

    def _ask_as_we_do(self) -> None:
        advice = f"SGLang {OWN_ROWS} or newer"
        batch = [*range(len(self._prompts))]
        self._question(
            "six prompts one at a time, as ebm-encode asks", batch, cured=True, advice=advice, at=1
        )
        if not self._info.keeps_rows_apart:
            self._found.not_asked.append(f"batches: before {OWN_ROWS} prompts go one at a time")
            self._found.not_asked.append(
                "what other people's requests do to it: it is right only while nobody else uses it"
            )
            return
        for again in ("", " again"):
            self._question(
                f"a batch of six, as ebm-encode asks{again}", batch, cured=True, advice=advice
            )

    def _ask_long(self) -> None:
        chunk, longest = self._info.chunk, self._info.longest or _LONGEST_PROBE
        if chunk is None:
            return
        if chunk + 1 > min(longest - 1, _LONGEST_PROBE):
            return
        rows = self._generate([self._prompt(chunk + 1)], cured=True)[0]
        self._add(
            f"a prompt of {chunk + 1} tokens, one more than --chunked-prefill-size",
            "all its rows" if len(rows) == chunk + 1 else f"{len(rows)} rows",
            right=len(rows) == chunk + 1,
            counts=False,
            advice="ebm-encode runs longer prompts in its own process; start the server with"
            " --chunked-prefill-size -1 to have them from it",
        )

    def _question(
        self,
        question: str,
        indices: Sequence[int],
        *,
        cured: bool,
        advice: str,
        at: int | None = None,
    ) -> None:
        """Asks for some prompts, `at` of them in a request."""
        prompts, step = [self._prompts[i] for i in indices], at or len(indices)
        answers = [
            rows
            for start in range(0, len(prompts), step)
            for rows in self._generate(prompts[start : start + step], cured=cured)
        ]
        names = [
            name_rows(rows, self._states[i], self._states, self._near)
            for i, rows in zip(indices, answers, strict=True)
        ]
        wrong = [name for name in names if name != "right"]
        answer = "right" if not wrong else f"{len(wrong)} of {len(names)} wrong: {wrong[0]}"
        self._add(question, answer, right=not wrong, counts=cured, advice=advice if wrong else "")

    def _generate(self, prompts: Sequence[Sequence32], *, cured: bool) -> list[NDArray[np.float32]]:
        ids = [uuid.uuid4().hex for _ in prompts]
        body = request_body(prompts, ids, extra_key=self._info.has_extra_key)
        if not cured:
            for name in ("extra_key", "return_logprob", "logprob_start_len"):
                body.pop(name, None)
        reply = self._transport.generate(body)
        items = reply if isinstance(reply, list) else [reply]
        if len(items) != len(prompts):
            raise UnsafeServerError(f"answers {len(items)} of {len(prompts)} prompts")
        return [_rows(item) for item in items]

    def _prompt(self, length: int) -> Sequence32:
        return np.array([self._rng.choice(_IDS) for _ in range(length)], np.uint32)

    def _add(
        self, question: str, answer: str, *, right: bool, counts: bool = True, advice: str = ""
    ) -> None:
        shown = "" if right else advice
        self._found.findings.append(Finding(question, answer, right, counts, shown))


def _rows(item: Any) -> NDArray[np.float32]:
    """What an item gives as the states of its prompt, whatever it is."""
    try:
        hidden = item["meta_info"]["hidden_states"]
        rows = np.asarray(hidden[0] if hidden else [], np.float32)
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise UnsafeServerError(f"gives no matrix of hidden states ({error!r})") from error
    return rows.reshape(-1, rows.shape[-1] if rows.size else 1)
