"""The options of `ebm-encode encode`, as groups of what they are about.

Their order, here and in `encode`, is that of the help.
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from ebm_encode.cli.parameters import ENGINE, FLAG, MANY, SECONDS, whole
from ebm_encode.options import (
    DEFAULT_COLUMN,
    Compile,
    Dtype,
    EngineName,
    InvalidRows,
    Overlong,
    Pooling,
    PrintedFormat,
    StateFormat,
)

AtLeastOne = whole(at_least=1)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """What embeddings are made with: everything that goes to `Encoder.load`.

    Attributes:
        adapter: PEFT adapter (LoRA) of the model, merged in float32 in memory: a folder, or a hub
            id with @REVISION behind it if wanted. Needs the extra ebm-encode[adapter].
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
        state_format: Printed form of the states, part of the encoder's identity: lean (Lean's own
            printer), pantograph, burnqed. States are converted to it. as-given: texts as they are.
    """

    adapter: str | None = None
    batch_size: Annotated[int | None, AtLeastOne] = None
    max_batch_tokens: Annotated[int | None, AtLeastOne] = None
    dtype: Dtype = "auto"
    device: str = "auto"
    engine: Annotated[EngineName, ENGINE] = "auto"
    compile_layers: Annotated[Compile, Parameter(name="--compile")] = "auto"
    max_length: Annotated[int | None, AtLeastOne] = None
    overlong: Overlong = "skip"
    template: str = "raw"
    pooling: Pooling = "mean"
    layer: int = -1
    state_format: StateFormat = "as-given"

    def arguments(self) -> dict[str, Any]:
        """The values by name, as `Encoder.load` takes them."""
        return asdict(self)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run reads, reuses, verifies and saves.

    Attributes:
        cache: Earlier caches of the same encoder to reuse embeddings from.
        column: Column or JSON field that holds the state.
        invalid_rows: Input rows that hold no text (a line that is not JSON, text that is not
            UTF-8, half of a surrogate pair), and states that cannot be converted: stop, or skip
            them and list them in OUTPUT.invalid.jsonl.
        states_in: Printed form that the input's states are in, for --state-format (default: what
            the texts show, if it makes no difference what they do not show).
        verify_sample: Embeddings to re-encode at batch size 1 and compare, each with its
            neighbour (default: one in 1,000, at least 32).
        checkpoint_rows: Save after this many new embeddings.
        checkpoint_seconds: Save at least every this many seconds.
        allow_quarantine: Exit with 0 even if some states have no valid embedding
            (OUTPUT.quarantine.jsonl lists them).
        overwrite: Replace an existing output, whichever encoder made it.
    """

    cache: Annotated[list[str] | None, MANY] = None
    column: str = DEFAULT_COLUMN
    invalid_rows: InvalidRows = "error"
    states_in: PrintedFormat | None = None
    verify_sample: Annotated[int | None, whole(at_least=0)] = None
    checkpoint_rows: Annotated[int, AtLeastOne] = 2000
    checkpoint_seconds: Annotated[float, SECONDS] = 60.0
    allow_quarantine: Annotated[bool, FLAG] = False
    overwrite: Annotated[bool, FLAG] = False
