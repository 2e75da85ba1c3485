"""Defects of SGLang's replies that a test switches on: what is wrong with rows, counts and ids."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from servers.stand_in.model import Model
from servers.stand_in.replies import Settings


@dataclass
class Item:
    """One prompt of a request and what is answered for it.

    `rows` [k, dim] are the states that the reply carries; `made` the generated tokens.
    """

    ids: list[int]
    rid: str
    made: list[int]
    wanted: bool = True
    new: int = 1
    key: str = ""
    start: int = -1
    cached: int = 0
    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    retractions: int = 0
    said_tokens: int | None = None
    hidden_cached: bool = False
    said_ids: list[int] | None = None
    nothing: bool = False
    no_key: bool = False
    null: bool = False

    def said_cached(self) -> int:
        return 0 if self.hidden_cached else self.cached


def _other(items: list[Item], item: Item) -> list[int]:
    """The ids of another prompt of the request, or of one that nobody sent."""
    unlike = [other.ids for other in items if other.ids != item.ids]
    return unlike[0] if unlike else [item.ids[0], *item.ids[:0:-1], item.ids[0]]


def _foreign_tail(items: list[Item], item: Item, model: Model) -> None:
    foreign = model.states(_other(items, item))
    item.rows = np.concatenate([model.states(item.ids)[1:], foreign[1:2]])


def _foreign_states(items: list[Item], item: Item, model: Model) -> None:
    # Rows of another prompt that begins with the same token: row 0 is right, and the count.
    other = np.resize(_other(items, item)[1:] or item.ids, len(item.ids)).tolist()
    other[0] = item.ids[0]
    if other[1:2] == item.ids[1:2]:
        other[1:2] = [_unlike(token, model) for token in item.ids[1:2]]
    item.rows = model.states(other)


def _unlike(token: int, model: Model) -> int:
    return (token + 1) % int(model.config.vocab_size)


def _last_chunk(_items: list[Item], item: Item, model: Model) -> None:
    item.rows = model.states(item.ids)[-max(1, len(item.ids) // 3) :]


def _last_chunk_filled(items: list[Item], item: Item, model: Model) -> None:
    _last_chunk(items, item, model)
    foreign = model.states(_other(items, item))
    missing = len(item.ids) - len(item.rows)
    item.rows = np.concatenate([item.rows, np.resize(foreign, (missing, foreign.shape[1]))])


def _cut(_items: list[Item], item: Item, model: Model) -> None:
    item.cached = max(1, len(item.ids) // 2)
    item.rows = model.states(item.ids)[item.cached :]


def _cut_silently(items: list[Item], item: Item, model: Model) -> None:
    _cut(items, item, model)
    item.hidden_cached = True


def _cut_first(_items: list[Item], item: Item, model: Model) -> None:
    item.rows = model.states(item.ids)[1:]


def _value(value: float, *, null: bool) -> Callable[[list[Item], Item, Model], None]:
    def put(_items: list[Item], item: Item, _model: Model) -> None:
        item.rows[-1, -1], item.null = value, null

    return put


def _set(**fields: object) -> Callable[[list[Item], Item, Model], None]:
    def put(_items: list[Item], item: Item, _model: Model) -> None:
        for name, value in fields.items():
            setattr(item, name, value)

    return put


def _zeros(_items: list[Item], item: Item, _model: Model) -> None:
    item.rows = np.zeros_like(item.rows)


def _zero_row(_items: list[Item], item: Item, _model: Model) -> None:
    item.rows[len(item.rows) // 2] = 0


def _float16(_items: list[Item], item: Item, _model: Model) -> None:
    item.rows = item.rows.astype(np.float16).astype(np.float32)


def _wrong_dimension(_items: list[Item], item: Item, _model: Model) -> None:
    item.rows = item.rows[:, : item.rows.shape[1] // 2]


def _ragged(_items: list[Item], item: Item, _model: Model) -> None:
    item.rows = item.rows[:-1]


def _other_tokenizer(_items: list[Item], item: Item, model: Model) -> None:
    ids = [*item.ids, item.ids[-1]]
    item.rows, item.said_tokens, item.said_ids = model.states(ids), len(ids), ids


def _other_ids(_items: list[Item], item: Item, model: Model) -> None:
    item.said_ids = [*item.ids[:-1], _unlike(item.ids[-1], model)]


def _wrong_rid(_items: list[Item], item: Item, _model: Model) -> None:
    item.rid = "0" * len(item.rid)


def _smaller(_items: list[Item], item: Item, _model: Model) -> None:
    item.rows = item.rows * np.float32(0.99)


def _normalised_rows(_items: list[Item], item: Item, _model: Model) -> None:
    item.rows = item.rows / np.linalg.norm(item.rows, axis=1, keepdims=True)


EACH: dict[str, Callable[[list[Item], Item, Model], None]] = {
    "zeros": _zeros,
    "zero_row": _zero_row,
    "empty": lambda _items, item, _model: setattr(item, "rows", item.rows[:0]),
    "nothing": _set(nothing=True),  # hidden_states: []
    "no_key": _set(no_key=True),
    "foreign_tail": _foreign_tail,  # own[1:] + other[1:2], of 0.4.9
    "foreign_states": _foreign_states,  # the right row 0, then another's: mixed traffic of 0.4.9
    "cut": _cut,  # the second half, and cached_tokens says so
    "cut_silently": _cut_silently,  # the same with cached_tokens 0
    "cut_first": _cut_first,  # all but row 0
    "last_chunk": _last_chunk,
    "last_chunk_filled": _last_chunk_filled,  # filled up with another's rows to the right count
    "retraction": _set(retractions=1),
    "nan": _value(float("nan"), null=True),  # null in JSON
    "nan_literal": _value(float("nan"), null=False),  # NaN in JSON
    "infinite": _value(float("inf"), null=False),
    "float16": _float16,
    "wrong_dimension": _wrong_dimension,
    "row_short": _ragged,
    "other_tokenizer": _other_tokenizer,  # one token and one row more
    "other_ids": _other_ids,  # the last id differs in input_token_logprobs
    "wrong_rid": _wrong_rid,
    "scaled": _smaller,  # every value 1% smaller: other weights
    "unit_rows": _normalised_rows,
}


def _swapped(items: list[Item]) -> list[Item]:
    """The states of the items in the other order, under the right ids."""
    rows = [item.rows for item in items][::-1]
    for item, other in zip(items, rows, strict=True):
        item.rows = other
    return items


WHOLE: dict[str, Callable[[list[Item]], list[Item]]] = {
    "wrong_order": lambda items: items[::-1],
    "swapped": _swapped,
    "missing_item": lambda items: items[:-1] or items,
    "more_items": lambda items: [*items, items[-1]],
}
DEFECTS = {*EACH, *WHOLE, "no_effect"}


def due(settings: Settings, asked: int) -> bool:
    """Whether this request, counted from 0, has the defect."""
    end = None if settings.times is None else settings.after + settings.times
    return asked >= settings.after and (end is None or asked < end)


def spoil(items: list[Item], settings: Settings, model: Model, asked: int) -> list[Item]:
    """The items with the defect in them, where it is due."""
    if not due(settings, asked):
        return items
    if settings.defect in WHOLE:
        return WHOLE[settings.defect](items)
    if settings.defect in EACH:
        rows = [item.rows for item in items]
        for i, item in enumerate(items):
            if item.wanted and (settings.items is None or i in settings.items):
                item.rows = rows[i].copy()
                EACH[settings.defect](items, item, model)
    return items
