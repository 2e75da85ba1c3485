"""`ebm-encode doctor`: whether a server's embeddings can be used."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.markup import escape

from ebm_encode.cli.parameters import FLAG, JSON, SECONDS, require_names
from ebm_encode.cli.server_options import read_token
from ebm_encode.errors import ArgumentError
from ebm_encode.options import Dtype

if TYPE_CHECKING:
    from ebm_encode.doctor import Diagnosis


def doctor(
    *,
    server: str,
    model_path: str | None = None,
    adapter: str | None = None,
    dtype: Dtype = "auto",
    server_token_file: Path | None = None,
    server_exclusive: Annotated[bool, FLAG] = False,
    timeout: Annotated[float, SECONDS] = 60.0,
    json_verdict: Annotated[bool, JSON] = False,
) -> int:
    """Examine an inference server: which requests come back right, cut, empty, zero or foreign.

    Finds out what it is (SGLang, vLLM or `ebm-encode serve`), sends a few small requests, and says
    what to change. Exit code 1 if its embeddings cannot be used.

    Example: `ebm-encode doctor --server http://127.0.0.1:30000 --model-path ./model`

    Args:
        server: URL of the server.
        model_path: The model that it serves, to compare with; a folder or hub id.
        adapter: PEFT adapter that the server's model has been merged with; a folder or hub id.
        dtype: Compute dtype of that model here; the server's.
        server_token_file: File with the server's bearer token; the environment variable
            EBM_ENCODE_TOKEN may hold it too.
        server_exclusive: Nobody else uses the server. SGLang before 0.5.17 is sent requests only
            then: they may end it.
        timeout: Seconds that a request may take.
        json_verdict: Print the verdict as JSON.
    """
    require_names(server=server, model_path=model_path, adapter=adapter)
    if adapter is not None and model_path is None:
        raise ArgumentError("`adapter`: needs its base model\nhint: give it as `model_path`")
    from ebm_encode.doctor import examine  # noqa: PLC0415  (pyarrow, perhaps torch)

    found = examine(
        server,
        token=read_token(server_token_file),
        exclusive=server_exclusive,
        model_path=model_path,
        adapter=adapter,
        dtype=dtype,
        timeout=timeout,
    )
    if json_verdict:
        print(json.dumps(found.to_json(), ensure_ascii=False))  # noqa: T201
    else:
        _print(found)
    return 0 if found.safe else 1


def _print(found: "Diagnosis") -> None:
    console = Console(highlight=False, soft_wrap=True)
    about = ", ".join(f"{name} {value}" for name, value in found.about.items() if value is not None)
    console.print(f"{escape(found.url)} is [bold]{found.kind}[/]: {escape(about)}")
    for finding in found.findings:
        mark = "[green]right[/]" if finding.right else "[red]wrong[/]"
        if not finding.right and not finding.counts:
            mark = "[yellow]wrong[/]"
        console.print(f"  {mark}  {escape(finding.question)}: {escape(finding.answer)}")
        if finding.advice:
            console.print(f"         hint: {escape(finding.advice)}")
    for reason in found.not_asked:
        console.print(f"  not asked: {escape(reason)}")
    verdict = (
        "[green]can be used by ebm-encode[/]" if found.safe else "[red]cannot be used as it is[/]"
    )
    console.print(f"verdict: {verdict}")
