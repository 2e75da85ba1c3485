"""`ebm-encode encode`: the main job from the command line."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cyclopts import Parameter

from ebm_encode import _core
from ebm_encode.cli.console import stderr_console
from ebm_encode.cli.parameters import ENGINE, FLAG, JSON, MANY, SECONDS, require_names, whole
from ebm_encode.cli.summary import log_input, print_summary, summary
from ebm_encode.data.side_files import INVALID, side_file, write_list
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
    from ebm_encode.data.remote import InputFile

log = logging.getLogger(__name__)

AtLeastOne = whole(at_least=1)


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
    allow_quarantine: Annotated[bool, FLAG] = False,
    overwrite: Annotated[bool, FLAG] = False,
    revision: str | None = None,
    trust_remote_code: Annotated[bool, FLAG] = False,
    code_revision: str | None = None,
    quiet: Annotated[bool, FLAG] = False,
    json_summary: Annotated[bool, JSON] = False,
) -> int:
    """Encode the distinct states of trajectory files into a checked embedding cache.

    Interrupt it any time; run the same command again to resume.

    Example: `ebm-encode encode --model-path ./model --trajectories runs/*.parquet --output
    states.parquet --batch-size 32`

    Args:
        model_path: Hugging Face causal LM: a folder, or a hub id.
        trajectories: Parquet or JSON-lines files with the states, folders of them (subfolders are
            read too), or glob patterns. May be URLs: s3://, gs://, hf:// or file://.
        output: Cache to write: a Parquet file, or an existing folder, which gets a new part with
            the new embeddings. May be a URL: s3://, gs:// or file://. Embeddings of the same
            encoder that it already holds are kept.
        batch_size: Maximum states per forward pass (default: max(256, max_batch_tokens / 32)).
        max_batch_tokens: Maximum tokens per forward pass, padding included. This limit matters
            most. Default: 8,192 on a CPU; on an accelerator measured on the first states.
        dtype: Compute dtype. auto: the one in the model's config.json, else that of its weights.
        device: Torch device. auto: the first accelerator, else the CPU.
        engine: Execution strategy. auto: the fastest one that is exact for this model, compared
            with the model at batch size 1.
        compile_layers: Compile the model's layers with torch, which takes about half a minute.
            auto: for long work on a GPU, if it proves faster there.
        max_length: Longest prompt in tokens; by default the model's own limit.
        overlong: Prompts longer than that. skip: no embedding. error: stop. truncate: cut as
            transformers does. truncate-state: drop hypotheses of the Lean state, first ones first,
            so that goals and template stay whole. All but error list them in
            OUTPUT.overlong.jsonl.
        template: Text around the state: raw (nothing), deepseek-prover-v2, or a file with
            {state} in it.
        pooling: Mean over all tokens of the prompt, or the last token only.
        layer: Index into Hugging Face's hidden_states; -1 is the last, after the final norm.
        cache: Earlier caches of the same encoder to reuse embeddings from.
        column: Column or JSON field that holds the state.
        invalid_rows: Input rows that hold no text (a line that is not JSON, text that is not
            UTF-8, half of a surrogate pair): stop, or skip them and list them in
            OUTPUT.invalid.jsonl.
        verify_sample: Embeddings to re-encode at batch size 1 and compare, each with its
            neighbour (default: one in 1,000, at least 32).
        checkpoint_rows: Save after this many new embeddings.
        checkpoint_seconds: Save at least every this many seconds.
        allow_quarantine: Exit with 0 even if some states have no valid embedding
            (OUTPUT.quarantine.jsonl lists them).
        overwrite: Replace an existing output, whichever encoder made it.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run code that comes with the model.
        code_revision: Commit of that code, if it is in another repository than the model.
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
    log_input(states)
    with _writer(output) as writer:
        require_model_libraries()
        from ebm_encode.bulk.provenance import describe_run  # noqa: PLC0415
        from ebm_encode.bulk.run import BulkRun  # noqa: PLC0415  (torch, only once it is needed)
        from ebm_encode.encoder import Encoder  # noqa: PLC0415
        from ebm_encode.identity.former import with_a_hint  # noqa: PLC0415
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
        with with_a_hint(output, encoder.identity):
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
        found = summary(outcome, encoder.choice, states, output, seconds)
        print(json.dumps(found, ensure_ascii=False))  # noqa: T201
    elif not quiet:
        print_summary(outcome, encoder.choice, states, output, seconds)
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
    """The output, locked until the end, whatever happens."""
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
            "interrupted; %d of %d states are saved. Run the same command again to resume",
            len(writer),
            states,
        )
        raise
