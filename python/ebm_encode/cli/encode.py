"""`ebm-encode encode`: the main job from the command line."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cyclopts import Parameter

from ebm_encode import _core
from ebm_encode.cli.console import stderr_console
from ebm_encode.cli.names import MANY, require_names
from ebm_encode.cli.numbers import SECONDS, whole
from ebm_encode.cli.option_names import ENGINE
from ebm_encode.data.side_files import INVALID, OVERLONG, QUARANTINE, side_file, write_list
from ebm_encode.errors import ArgumentError, require_model_libraries
from ebm_encode.options import (
    DEFAULT_COLUMN,
    Compile,
    Dtype,
    EngineName,
    InvalidRows,
    Overlong,
    Pooling,
)
from ebm_encode.prompts.templates import Template

if TYPE_CHECKING:
    from ebm_encode.bulk.outcome import Outcome
    from ebm_encode.data.remote import InputFile
    from ebm_encode.data.trajectories import States
    from ebm_encode.engines.selftest import EngineChoice

log = logging.getLogger(__name__)

AtLeastOne = whole(at_least=1)
_NAMED = 3
Flag = Parameter(negative="", show_default=False)


def encode(
    *,
    model_path: str,
    trajectories: Annotated[list[str], MANY],
    output: str,
    batch_size: Annotated[int | None, AtLeastOne] = None,
    max_batch_tokens: Annotated[int | None, AtLeastOne] = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    engine: Annotated[EngineName, ENGINE] = "auto",
    compile_layers: Annotated[Compile, Parameter(name="--compile")] = "auto",
    max_length: Annotated[int | None, AtLeastOne] = None,
    overlong: Overlong = "skip",
    template: str = "raw",
    pooling: Pooling = "mean",
    layer: int = -1,
    cache: Annotated[list[str] | None, MANY] = None,
    column: str = DEFAULT_COLUMN,
    invalid_rows: InvalidRows = "error",
    verify_sample: Annotated[int | None, whole(at_least=0)] = None,
    checkpoint_rows: Annotated[int, AtLeastOne] = 2000,
    checkpoint_seconds: Annotated[float, SECONDS] = 60.0,
    allow_quarantine: Annotated[bool, Flag] = False,
    overwrite: Annotated[bool, Flag] = False,
    revision: str | None = None,
    trust_remote_code: Annotated[bool, Flag] = False,
    code_revision: str | None = None,
    quiet: Annotated[bool, Flag] = False,
    json_summary: Annotated[
        bool, Parameter(name="--json", negative="", show_default=False)
    ] = False,
) -> int:
    """Encode the distinct states of trajectory files into a checked embedding cache.

    Can be stopped at any time; the same command goes on where it stopped.

    Example: `ebm-encode encode --model-path ./model --trajectories runs/*.parquet --output
    states.parquet --batch-size 32`

    Args:
        model_path: A Hugging Face causal model: its folder, or its hub id.
        trajectories: Parquet or JSON-lines files with the states; folders, with their subfolders,
            and glob patterns too. All of these, and the output, may be URLs: s3://, gs:// or
            file://.
        output: The cache to write: a Parquet file, or a folder that exists, which gets a new part
            for the new rows. Rows of the same encoder that it has already are kept.
        batch_size: Most states in one forward pass; by default one for each 32 tokens, and at
            least 256.
        max_batch_tokens: Most tokens in one forward pass, padding included. This is the limit
            that matters; by default 8,192 on a CPU, and on an accelerator what is measured to be
            fastest on the first states.
        dtype: Compute dtype; auto is the one that the model's config.json names, or else the one
            that its weights are stored in.
        device: Any torch device; auto is the first accelerator, else the CPU.
        engine: How states go through the model; auto is the fastest one whose rows are those of
            each state alone on this very model.
        compile_layers: Whether torch compiles the model's layers, which takes about half a minute;
            auto does so for long work on a GPU, if it proves faster there.
        max_length: Longest prompt in tokens; by default the model's own limit.
        overlong: What to do with longer ones. skip: they get no embedding. error: stop.
            truncate: cut them as transformers does. truncate-state: drop hypotheses of the Lean
            state, the first ones first, so that its goals and the template stay whole. All but
            error list them in OUTPUT.overlong.jsonl.
        template: Text around the state: raw (nothing), deepseek-prover-v2, or a file with
            {state} in it.
        pooling: Mean over all tokens of the prompt, or the last token only.
        layer: Which of Hugging Face's hidden_states; -1 is the last one, after the final norm.
        cache: Earlier caches of the same encoder to take rows from.
        column: The column or JSON field that holds the state.
        invalid_rows: What to do about input rows that hold no text (a line that is not JSON, text
            that is not UTF-8, half of a surrogate pair): stop, or skip them, counted and listed in
            OUTPUT.invalid.jsonl.
        verify_sample: Embeddings to draw, re-encode at batch size 1 and compare, each with its
            neighbour; by default one in 1,000, and at least 32.
        checkpoint_rows: Save after so many new rows.
        checkpoint_seconds: Save after so many seconds, at the latest.
        allow_quarantine: Exit with 0 even if some states have no right row
            (OUTPUT.quarantine.jsonl lists them).
        overwrite: Replace an output that is already there, whichever encoder made it.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Let code that comes with the model run.
        code_revision: Commit of that code, where it is in another repository than the model.
        quiet: Show no progress and no summary.
        json_summary: Print the summary as JSON on standard output.
    """
    started = datetime.now(UTC)
    if quiet:
        logging.getLogger("ebm_encode").setLevel(logging.WARNING)
    require_names(model_path=model_path, output=output, template=template, cache=cache)
    output = _usable(output)
    Template.load(template)  # before anything that takes long
    # Here, so that help needs neither pyarrow nor torch.
    from ebm_encode.bulk.progress import EncodingProgress  # noqa: PLC0415
    from ebm_encode.data.trajectories import read_states  # noqa: PLC0415

    states = read_states(trajectories, column, invalid_rows=invalid_rows)
    if any(_same(output, file) for file in states.files):
        raise ArgumentError(f"`output` {output}: is one of the `trajectories`")
    _tell_input(states)
    with _writer(output) as writer:
        require_model_libraries()
        from ebm_encode.bulk.provenance import describe_run  # noqa: PLC0415
        from ebm_encode.bulk.run import BulkRun  # noqa: PLC0415  (torch, only once it is needed)
        from ebm_encode.encoder import Encoder  # noqa: PLC0415
        from ebm_encode.identity.former import naming_the_way_out  # noqa: PLC0415
        from ebm_encode.loading.model import silence_transformers  # noqa: PLC0415

        log.info("loading the model %s", model_path)
        if quiet:
            silence_transformers()
        encoder = Encoder.load(
            model_path,
            template=template,
            dtype=dtype,
            device=device,
            pooling=pooling,
            layer=layer,
            max_length=max_length,
            overlong=overlong,
            max_batch_tokens=max_batch_tokens,
            batch_size=batch_size,
            engine=engine,
            compile_layers=compile_layers,
            revision=revision,
            trust_remote_code=trust_remote_code,
            code_revision=code_revision,
        )
        encoder.require_finite()
        log.info("engine %s: %s", encoder.choice.engine.name, encoder.choice.reason)
        with naming_the_way_out(output, encoder.identity):
            writer.open(
                encoder.identity,
                encoder.dim,
                checkpoint_rows=checkpoint_rows,
                checkpoint_seconds=checkpoint_seconds,
                overwrite=overwrite,
            )
        run = BulkRun(encoder, writer, output, overwrite=overwrite)
        todo = run.adopt(cache or [], states.texts)
        size = sum(len(state.encode()) for state in todo)
        progress = EncodingProgress(len(todo), size, quiet=quiet, console=stderr_console())
        with _hint(writer, len(states.texts)), progress:
            run.encode(todo, progress)
        outcome = run.finish(describe_run(encoder, states, started), sample=verify_sample)
        write_list(side_file(output, INVALID), states.invalid)
    seconds = (datetime.now(UTC) - started).total_seconds()
    if json_summary:
        summary = _summary(outcome, encoder.choice, states, output, seconds)
        print(json.dumps(summary, ensure_ascii=False))  # noqa: T201
    elif not quiet:
        _print_summary(outcome, encoder.choice, states, output, seconds)
    return 1 if outcome.quarantined and not allow_quarantine else 0


def _usable(output: str) -> str:
    """An output that can be written, by the name it really has."""
    if _core.is_remote(output):
        return output.rstrip("/")
    if output.startswith("file://"):
        output = url2pathname(urlsplit(output).path)
    path = Path(output)
    # Lists stand beside the output, under its name.
    if path.is_symlink() or path.name in {"", ".."}:
        path = Path(os.path.realpath(output))
    if path.suffix != ".parquet" and not path.is_dir():
        raise ArgumentError(
            f"`output` {path}: expected a file name ending in .parquet, or a folder that exists"
        )
    if not path.absolute().parent.is_dir():
        raise ArgumentError(f"`output` {path}: there is no folder {path.parent}")
    return str(path)


def _same(output: str, file: "InputFile") -> bool:
    if _core.is_remote(output) or not isinstance(file, Path):
        return output == str(file)
    return Path(output).exists() and file.samefile(output)


@contextmanager
def _writer(output: str) -> Iterator[_core.CacheWriter]:
    """The locked output; the lock is given up at the end, whatever happens."""
    writer = _core.CacheWriter(output)
    try:
        yield writer
    finally:
        writer.close()


@contextmanager
def _hint(writer: _core.CacheWriter, states: int) -> Iterator[None]:
    """Tells an interrupted user that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        log.warning(
            "stopped; %d of %d states are saved. The same command goes on from there",
            len(writer),
            states,
        )
        raise


def _tell_input(states: "States") -> None:
    for warning in states.warnings:
        log.warning("%s", warning)
    for note in states.notes:
        log.info("%s", note)
    counts = states.counts
    left_out = {
        "repeated": counts.repeated,
        "of finished proofs": counts.proof_complete,
        "empty": counts.empty,
        "null": counts.null,
        "invalid": counts.invalid,
    }
    skipped = ", ".join(f"{count:,} {what}" for what, count in left_out.items() if count)
    log.info(
        "%s states from %s files (%s rows%s)",
        f"{counts.unique:,}",
        f"{len(states.files):,}",
        f"{counts.rows:,}",
        f": skipped {skipped}" if skipped else "",
    )
    for record in states.invalid[:_NAMED]:
        log.warning("%s: %s: %s; skipped", record["file"], record["row"], record["reason"])
    if len(states.invalid) > _NAMED:
        log.warning("%s more invalid rows are skipped", f"{len(states.invalid) - _NAMED:,}")


def _summary(
    outcome: "Outcome", choice: "EngineChoice", states: "States", output: str, seconds: float
) -> dict[str, object]:
    verification = outcome.verification.to_json() if outcome.verification else None
    return {
        "output": output,
        "seconds": round(seconds, 3),
        "input": asdict(states.counts),
        "skipped_inputs": [*states.warnings, *states.notes],
        "engine": choice.to_json(),
        **asdict(outcome),
        "verification": verification,
    }


def _print_summary(
    outcome: "Outcome", choice: "EngineChoice", states: "States", output: str, seconds: float
) -> None:
    lines = {
        "cache": f"{output}, {outcome.rows:,} rows" + ("" if outcome.written else " (unchanged)"),
        "encoded": f"{outcome.encoded:,} states, {outcome.tokens:,} tokens in {seconds:,.1f} s",
        "engine": f"{choice.engine.name}: {choice.reason}",
        "already there": f"{outcome.already_there:,}",
        "other caches": f"{outcome.from_caches:,}",
        "truncated": f"{outcome.truncated:,}",
        "skipped": f"{outcome.skipped:,}"
        + (" longer than --max-length" if outcome.skipped else ""),
        "quarantined": f"{len(outcome.quarantined):,}",
    }
    if outcome.truncated or outcome.skipped:
        lines["overlong states"] = side_file(output, OVERLONG)
    if outcome.same_by_cutting:
        lines["same when cut"] = f"{outcome.same_by_cutting:,} states have the embedding of another"
    if outcome.quarantined:
        lines["bad rows"] = side_file(output, QUARANTINE)
    if outcome.verification:
        checked = outcome.verification
        lines["verified"] = (
            f"{checked.rows:,} embeddings re-encoded at batch size 1: relative error at most"
            f" {checked.max_relative_error:.1e}, cosine at least {checked.min_cosine:.6f};"
            f" at most {100 * checked.wrong_at_most:.1f} % of all are wrong (95 % confidence)"
        )
        if checked.not_compared:
            lines["not verified"] = f"{checked.not_compared} (out of memory at batch size 1)"
    if states.counts.invalid:
        lines["invalid rows"] = f"{states.counts.invalid:,}, {side_file(output, INVALID)}"
    left_out = states.counts.proof_complete + states.counts.empty + states.counts.null
    lines["no state in"] = f"{left_out:,} input rows (finished proofs, empty or null)"
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")  # noqa: T201
