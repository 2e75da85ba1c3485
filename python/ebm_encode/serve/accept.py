"""Which form of answer a request accepts, as RFC 9110, section 12.5.1 says."""

import re
from collections.abc import Sequence
from urllib.request import parse_http_list

from ebm_encode.serve.forms import ARROW, JSON, RAW

_FORMS = (JSON, ARROW, RAW)
_QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")


def chosen_form(accept: Sequence[str]) -> str | None:
    """The form that a request likes most; `None` where it accepts none of them.

    Of equally liked ones it is the one that is listed itself, and first; else JSON.

    Args:
        accept: Its `Accept` headers.
    """
    listed = parse_http_list(",".join(accept))
    if not any(listed):
        return JSON
    ranges = [own for own in map(_range, listed) if own is not None]
    best: str | None = None
    most = (0.0, 0, 0)
    for form in _FORMS:
        own = _liking(form, ranges)
        if own > most and own[0] > 0:
            best, most = form, own
    return best


def _range(item: str) -> tuple[str, float] | None:
    """A range of media types and its quality; `None` for what is none."""
    kind, *parameters = (part.strip().lower() for part in item.split(";"))
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            if not _QUALITY.fullmatch(value.strip()):
                return None
            quality = float(value)
    return kind, quality


def _liking(form: str, ranges: Sequence[tuple[str, float]]) -> tuple[float, int, int]:
    """Quality, how near the range is that says so, and how early it stands.

    The nearest range decides, whatever quality others give.
    """
    for near, kind in ((2, form), (1, "application/*"), (0, "*/*")):
        found = [(quality, near, -i) for i, (own, quality) in enumerate(ranges) if own == kind]
        if found:
            return max(found)
    return 0.0, 0, 0
