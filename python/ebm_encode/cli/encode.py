"""`ebm-encode encode`: the main job from the command line."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ebm_encode import _core
from ebm_encode.cli.console import stderr_console
from ebm_encode.cli.encode_options import EncoderOptions, RunOptions
from ebm_encode.cli.parameters import FLAG, JSON, MANY, HubOptions, require_names
from ebm_encode.cli.server_options import ServerOptions
from ebm_encode.cli.summary import log_input, print_summary, summary
from ebm_encode.data.side_files import INVALID, side_file, write_list
from ebm_encode.errors import ArgumentError, require_model_libraries
from ebm_encode.prompts.templates import Template

if TYPE_CHECKING:
    from ebm_encode.bulk.outcome import Outcome
    from ebm_encode.data.remote import InputFile
    from ebm_encode.data.trajectories import States
    from ebm_encode.encoder import Encoder

log = logging.getLogger(__name__)


def encode(
    *,
    model_path: str,
    trajectories: Annotated[list[str], MANY],
    output: str,
    encoding: EncoderOptions = EncoderOptions(),
    run: RunOptions = RunOptions(),
    hub: HubOptions = HubOptions(),
    backend: ServerOptions = ServerOptions(),
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
        encoding: What embeddings are made with.
        run: How the run reads, reuses, verifies and saves.
        hub: Which version of a model on the hub.
        backend: What computes the embeddings.
        quiet: Show no progress and no summary.
        json_summary: Print the summary as JSON on standard output.
    """
    started = datetime.now(UTC)
    if quiet:
        logging.getLogger("ebm_encode").setLevel(logging.WARNING)
    require_names(model_path=model_path, adapter=encoding.adapter, output=output)
    require_names(template=encoding.template, cache=run.cache)
    output = _usable(output)
    Template.load(encoding.template)  # before anything that takes long
    if backend.backend != "hf" and run.verify_sample == 0:
        raise ArgumentError(
            f"`verify_sample` 0: embeddings of a {backend.backend} server are not taken unverified"
        )
    loading = encoding.arguments() | hub.arguments() | backend.arguments()
    states = _read(trajectories, output, run, encoding.state_format)
    with _writer(output) as writer:
        encoder = _load(model_path, loading, quiet=quiet)
        _open(writer, output, encoder, run)
        outcome = _run(encoder, writer, output, states, run, started=started, quiet=quiet)
        write_list(side_file(output, INVALID), states.invalid)
    seconds = (datetime.now(UTC) - started).total_seconds()
    if json_summary:
        found = summary(outcome, encoder.choice, states, output, seconds)
        print(json.dumps(found, ensure_ascii=False))  # noqa: T201
    elif not quiet:
        print_summary(outcome, encoder.choice, states, output, seconds)
    return 1 if outcome.quarantined and not run.allow_quarantine else 0


def _read(trajectories: list[str], output: str, run: RunOptions, state_format: str) -> "States":
    """The states of the input files, none of which is the output, in the encoder's format."""
    # Here, so that help does not need pyarrow.
    from ebm_encode.data.trajectories import convert_input, read_states  # noqa: PLC0415

    states = read_states(trajectories, run.column, invalid_rows=run.invalid_rows)
    if any(_same(output, file) for file in states.files):
        raise ArgumentError(f"`output` {output}: is one of the `trajectories`")
    convert_input(states, state_format, run.states_in, invalid_rows=run.invalid_rows)
    log_input(states)
    return states


def _load(model_path: str, loading: dict[str, Any], *, quiet: bool) -> "Encoder":
    """The encoder, whose model gives finite numbers."""
    require_model_libraries()
    from ebm_encode.encoder import Encoder  # noqa: PLC0415  (torch, only once it is needed)
    from ebm_encode.loading.model import silence_transformers  # noqa: PLC0415

    log.info("loading the model %s", model_path)
    if quiet:
        silence_transformers()
    encoder = Encoder.load(model_path, **loading)
    encoder.require_finite()
    log.info("engine %s: %s", encoder.choice.engine.name, encoder.choice.reason)
    return encoder


def _open(writer: _core.CacheWriter, output: str, encoder: "Encoder", run: RunOptions) -> None:
    """Opens the output for embeddings of this encoder."""
    from ebm_encode.identity.former import with_a_hint  # noqa: PLC0415  (torch)

    with with_a_hint(output, encoder.identity):
        writer.open(
            encoder.identity,
            encoder.dim,
            checkpoint_rows=run.checkpoint_rows,
            checkpoint_seconds=run.checkpoint_seconds,
            overwrite=run.overwrite,
        )


def _run(
    encoder: "Encoder",
    writer: _core.CacheWriter,
    output: str,
    states: "States",
    run: RunOptions,
    *,
    started: datetime,
    quiet: bool,
) -> "Outcome":
    """Encodes what no cache has, verifies a sample, and writes the output."""
    from ebm_encode.bulk.progress import EncodingProgress  # noqa: PLC0415
    from ebm_encode.bulk.provenance import describe_run  # noqa: PLC0415  (torch)
    from ebm_encode.bulk.run import BulkRun  # noqa: PLC0415

    bulk = BulkRun(encoder, writer, output, overwrite=run.overwrite)
    todo = bulk.adopt(run.cache or [], states.texts)
    size = sum(len(state.encode()) for state in todo)
    progress = EncodingProgress(len(todo), size, quiet=quiet, console=stderr_console())
    with _hint(writer, len(states.texts)), progress:
        bulk.encode(todo, progress)
    return bulk.finish(describe_run(encoder, states, started), sample=run.verify_sample)


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
