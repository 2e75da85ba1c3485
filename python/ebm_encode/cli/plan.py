"""`ebm-encode plan`: what encoding some files would cost, without running the model."""

import json
import logging
from typing import TYPE_CHECKING, Annotated, Any

from ebm_encode import _core
from ebm_encode.cli.parameters import JSON, MANY, PER_SECOND, HubOptions, require_names, whole
from ebm_encode.errors import InputError, require_model_libraries
from ebm_encode.options import DEFAULT_COLUMN, InvalidRows, Overlong, PrintedFormat, StateFormat
from ebm_encode.prompts.templates import Template
from ebm_encode.state_formats import AS_GIVEN, format_name

if TYPE_CHECKING:
    from ebm_encode.bulk.forecast import Forecast
    from ebm_encode.engines.budget import Budget
    from ebm_encode.prompts.tokens import Tokens

log = logging.getLogger(__name__)

_BAR = 40


def plan(
    *,
    model_path: str,
    trajectories: Annotated[list[str], MANY],
    batch_size: Annotated[int | None, whole(at_least=1)] = None,
    max_batch_tokens: Annotated[int | None, whole(at_least=1)] = None,
    max_length: Annotated[int | None, whole(at_least=1)] = None,
    overlong: Overlong = "skip",
    template: str = "raw",
    column: str = DEFAULT_COLUMN,
    invalid_rows: InvalidRows = "error",
    state_format: StateFormat = "as-given",
    states_in: PrintedFormat | None = None,
    cache: Annotated[list[str] | None, MANY] = None,
    rate: Annotated[float | None, PER_SECOND] = None,
    hub: HubOptions = HubOptions(),
    json_output: Annotated[bool, JSON] = False,
) -> int:
    """Show what encoding would cost: tokens, shared prefixes, padding, time. Runs no model.

    Args:
        model_path: Hugging Face causal LM, of which only the tokenizer is read.
        trajectories: Parquet or JSON-lines files with the states, folders of them (subfolders are
            read too), or glob patterns. May be URLs: s3://, gs://, hf:// or file://.
        batch_size: Maximum states per forward pass (default: max(256, max_batch_tokens / 32)).
        max_batch_tokens: Maximum tokens per forward pass (default: 8,192).
        max_length: Longest prompt in tokens; by default the model's own limit.
        overlong: What `encode` would do with longer ones.
        template: Text around the state: raw, deepseek-prover-v2, or a file with {state} in it.
        column: Column or JSON field that holds the state.
        invalid_rows: Input rows that hold no text: stop, or skip them.
        state_format: Printed form to which `encode` would convert the states: lean (Lean's own
            printer), pantograph, burnqed, or as-given.
        states_in: Printed form that the states are in (default: what the texts show, if it makes no
            difference what they do not show).
        cache: Caches of which to tell how many of the states they hold.
        rate: Tokens per second of the model, for the expected time; `encode` shows it.
        hub: Which version of a model on the hub.
        json_output: Print JSON.
    """
    require_names(model_path=model_path, template=template, cache=cache)
    chosen = Template.load(template)
    # Here, so that help needs neither pyarrow nor torch.
    from ebm_encode.data.trajectories import convert_input, read_states  # noqa: PLC0415

    states = read_states(trajectories, column, invalid_rows=invalid_rows)
    for warning in states.warnings:
        log.warning("%s", warning)
    overlaps = {path: _core.state_overlap(path, states.texts, states_in) for path in cache or []}
    # Without a conversion, the form is of use for the caches alone.
    source = None if cache and format_name(state_format) == AS_GIVEN else states_in
    convert_input(states, state_format, source, invalid_rows=invalid_rows)
    if states.conversion:
        log.info("%s", states.conversion)
    require_model_libraries()
    from ebm_encode.engines.budget import Budget  # noqa: PLC0415  (torch, once needed)
    from ebm_encode.loading.model import load_tokenizer, longest_prompt  # noqa: PLC0415
    from ebm_encode.prompts.cutting import cut_for  # noqa: PLC0415
    from ebm_encode.prompts.tokens import Prompts  # noqa: PLC0415

    tokenizer, limit = load_tokenizer(model_path, **hub.arguments())
    longest = longest_prompt(limit, max_length)
    budget = Budget.of(max_batch_tokens, batch_size)
    prompts = Prompts(tokenizer, chosen, longest, cut=cut_for(overlong))
    tokens = prompts.tokenize(sorted(states.texts))
    report: dict[str, Any] = _forecast(tokens, longest, budget, rate).to_json()
    if states.conversion:
        report["conversion"] = states.conversion.to_json()
    report |= {"overlaps": overlaps} if overlaps else {}
    if json_output:
        print(json.dumps(report))  # noqa: T201
    else:
        _print(report)
    return 0


def _print_overlap(cache: str, overlap: dict[str, Any]) -> None:
    print(f"{'in ' + cache:<22}  {overlap['message']}")  # noqa: T201
    if overlap["hint"]:
        print(f"{'':<22}  {overlap['hint']}")  # noqa: T201


def _forecast(
    tokens: "Tokens", longest: int | None, budget: "Budget", rate: float | None
) -> "Forecast":
    """What the sequences would cost that `encode` would run."""
    import numpy as np  # noqa: PLC0415  (not for help)

    from ebm_encode.bulk.forecast import forecast  # noqa: PLC0415

    has_tokens = tokens.lengths > 0
    fits = tokens.lengths <= (longest or np.inf)
    usable = np.flatnonzero(has_tokens & fits).tolist()
    if not has_tokens.any():
        raise InputError("no state has a token under this tokenizer and template")
    if not usable:
        raise InputError(
            f"all prompts are longer than {longest} tokens (--max-length)\n"
            "hint: raise it, or cut prompts with --overlong truncate or truncate-state"
        )
    return forecast(
        tokens.select(usable),
        max_nodes=budget.tokens,
        max_rows=budget.sequences,
        rate=rate,
        without_tokens=int((~has_tokens).sum()),
        too_long=int((~fits).sum()),
    )


def _print(report: dict[str, Any]) -> None:
    tokens, through = report["tokens"], report["window_nodes"]
    lines = {"states": f"{report['states']:,}"}
    for key, what in (
        ("truncated", "truncated"),
        ("without_tokens", "without a token"),
        ("too_long", "too long"),
    ):
        if report[key]:
            lines[what] = f"{report[key]:,}"
    lines |= {
        "tokens": f"{tokens:,}, {tokens / report['states']:,.1f} a state",
        "unique tokens": f"{report['unique_nodes']:,} after prefix sharing,"
        f" {tokens / report['unique_nodes']:.2f} times fewer",
        "computed tokens": f"{through:,} in {report['windows']:,} packed batches,"
        f" {tokens / through:.2f} times fewer",
        "without sharing": f"{tokens:,}, {tokens / through:.2f} times as many",
    }
    for order, slots in report["padded_slots"].items():
        padding = 1 - tokens / slots
        lines[f"padded, 32 {order}"] = (
            f"{slots:,}, {slots / through:.2f} times as many, {padding:.1%} padding"
        )
    if report["seconds"] is not None:
        lines["expected time"] = f"{report['seconds']:,.0f} s"
    for name, value in lines.items():
        print(f"{name:<22}  {value}")  # noqa: T201
    for cache, overlap in report.get("overlaps", {}).items():
        _print_overlap(cache, overlap)
    print("lengths in tokens")  # noqa: T201
    most = max(count for _, count in report["lengths"])
    for bound, count in report["lengths"]:
        bar = "█" * round(_BAR * count / most)
        print(f"  up to {bound:>7,}  {count:>9,}  {bar}".rstrip())  # noqa: T201
