"""The Rust core: cache, row checks, packing, attention on a CPU. See the rustdoc of its crates.

A path is a path, or a URL (as `str`): `s3://bucket/key`, `gs://bucket/key`, `file:///path`.
`states: Any` is texts in any ordered collection: a list, tuple or iterator, a numpy array, a column
of pandas, polars or pyarrow; a list of `str` is the fastest.
All functions raise the classes of `ebm_encode.errors`. All release the GIL while they work.
"""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from os import PathLike
from typing import Any, Final, Literal, Self, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

__all__ = [
    "FORMAT_VERSION",
    "METADATA_KEY",
    "OPTIMISED",
    "BadRow",
    "Cache",
    "CacheSchema",
    "CacheWriter",
    "CachedEncoder",
    "EmbeddingCache",
    "EnergyHead",
    "Identity",
    "MappedCache",
    "NoEmbedding",
    "PathAttention",
    "Trie",
    "__version__",
    "audit",
    "check_rows",
    "compact",
    "convert_states",
    "count_nodes",
    "describe",
    "detect_state_formats",
    "is_remote",
    "list_files",
    "path_kind",
    "plan_padded",
    "plan_windows",
    "prefers_mapped",
    "read_file",
    "remove_file",
    "source_format_of",
    "state_format_name",
    "state_overlap",
    "write_file",
]

METADATA_KEY: Final[str]
FORMAT_VERSION: Final[int]
OPTIMISED: Final[bool]
__version__: Final[str]

@final
class Identity:
    """Everything that changes an encoder's numbers beyond rounding. Immutable."""

    @staticmethod
    def from_json(json: str) -> Identity:
        """Reads an identity; raises `ArgumentError` where fields are missing."""
    def to_json(self) -> str:
        """The identity as a JSON object."""
    @property
    def digest(self) -> str:
        """32 hex digits over all fields."""
    def differences(self, other: Identity | None) -> list[tuple[str, str, str]]:
        """(field, here, there) for each field that differs; an unknown one (`None`) differs."""
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class BadRow:
    """Why a row is bad."""

    @property
    def kind(self) -> str:
        """`non_finite`, `zero_norm`, `norm_outlier`, `duplicate` or `conflict`."""
    @property
    def reason(self) -> str:
        """The reason in words."""
    @property
    def duplicate_of(self) -> str | None:
        """Hex key of the other state, for a duplicate."""
    @property
    def other_row(self) -> int | None:
        """Number of the other row, for a duplicate or conflict; rows count as they were offered."""

@final
class CacheSchema:
    """The cache's Arrow schema, for any library that takes an Arrow schema producer."""

    def __new__(cls) -> Self: ...
    def __arrow_c_schema__(self) -> object: ...

@disjoint_base
class Cache:
    """A cache that is open: a mapping from states to embeddings. See its two kinds."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...
    def keys(self) -> KeysView[str]: ...
    def values(self) -> ValuesView[NDArray[np.float32]]: ...
    def items(self) -> ItemsView[str, NDArray[np.float32]]: ...
    def __contains__(self, state: str, /) -> bool: ...
    def __getitem__(self, state: str, /) -> NDArray[np.float32]:
        """A copy of a state's embedding, float32 `[dim]`; raises `KeyError` if there is none."""
    def get(self, state: str) -> NDArray[np.float32] | None:
        """A copy of a state's embedding, or `None`."""
    def gather(self, states: Any, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Copies the embeddings of states, in their order, into `out`, and returns it.

        Args:
            states: The states; `ArgumentError` lists those that are not text by index.
            out: float32 `[len(states), dim]`, C order, writeable, for example the memory of a
                pinned torch tensor (`tensor.numpy()`); a new array if not given.

        Raises `UnknownStateError`, listing states that the cache does not have; nothing is written
        then. Raises `ArgumentError` if `out` is of another shape or cannot be written. Of a
        mapped cache, a page that fails its checks raises `CacheFormatError` or `BadRowsError`, and
        `out` is of no use.
        """
    def positions(self, states: Any) -> NDArray[np.int64]:
        """The row numbers of states; raises `UnknownStateError`, listing those not there."""
    def gather_rows(
        self, rows: NDArray[np.int64], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Copies the rows with these numbers, in this order, into `out`, and returns it.

        Args:
            rows: Row numbers, int64 `[n]`, as `positions` gives them.
            out: float32 `[n, dim]`, as for `gather`.

        Raises `ArgumentError` if there is no such row, or as `gather` does.
        """
    def states(self) -> list[str]:
        """All states, in file order."""
    def require_identity(self, identity: Identity, name: str) -> None:
        """Raises `IdentityMismatchError` unless `identity` made this cache. `name` is for it."""
    @property
    def dim(self) -> int:
        """Length of every embedding."""
    @property
    def identity(self) -> Identity | None:
        """The encoder that made the embeddings; `None` where the file does not say."""
    @property
    def provenance(self) -> list[dict[str, Any]]:
        """The provenance of each run that made rows, in the order of the rows."""
    @property
    def runs(self) -> list[dict[str, Any]]:
        """The same with numbers of rows: dicts of `rows` and `provenance`, in the rows' order."""
    @property
    def path(self) -> str:
        """The file or folder."""

@final
class EmbeddingCache(Cache):
    """A cache in memory: a mapping from states to embeddings.

    Embeddings are views of Rust memory, float32 `[dim]`, never copies. numpy refuses to write them;
    torch does not ask, so the memory itself is protected: a write through `torch.from_numpy` ends
    the process, instead of changing the cache for all. Take `gather` or `EmbeddingDataset` for
    embeddings to work on. Pickled, it is opened again by its path.
    """

    @staticmethod
    def open(
        path: str | PathLike[str], *, strict: bool = True, verify_checksums: bool = True
    ) -> EmbeddingCache:
        """Opens a file or a folder of shards.

        With `strict`, bad rows raise `BadRowsError`; with `verify_checksums`, pages whose checksum
        is another raise `CacheFormatError`. Raises `CacheNotFoundError`,
        `CacheFormatError` or `IdentityMismatchError` for what cannot be read as one cache.
        """
    def __getitem__(self, state: str, /) -> NDArray[np.float32]: ...
    def get(self, state: str) -> NDArray[np.float32] | None:
        """The embedding of a state, or `None`."""
    def get_many(self, states: Any) -> list[NDArray[np.float32] | None]:
        """The embedding of each state, or `None`."""
    def matrix(self) -> NDArray[np.float32]:
        """All rows in file order: a read-only view, float32 `[len, dim]`."""
    def nearest(self, state: str, count: int) -> list[tuple[str, float]]:
        """The states with the most similar embeddings by cosine, itself included, best first."""

@final
class EnergyHead:
    """An energy head: a small network that scores embeddings. See `docs/head-format.md`.

    The energy is lower for better states; the score is minus the energy, so higher is better.

    `rows` are embeddings, float32 `[n, dim]`, C order; they are read in place. The result is
    float32 `[n]`, in their order. A row's result does not depend on the rows beside it or on the
    number of threads. It agrees with torch within 1e-5 of the largest energy.

    Raises `ArgumentError` for rows of another length, that are not C-contiguous, or with NaN or
    infinite values, and where a result is beyond float32; `TypeError` for another dtype.
    """

    @staticmethod
    def open(path: str | PathLike[str]) -> EnergyHead:
        """Reads a head file; the path may be a URL.

        Raises `HeadNotFoundError`, `CacheIOError` if it cannot be read, and `HeadFormatError` if it
        is not a head, is damaged, or is of a later version.
        """
    def energies(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The energy of each row; lower is better."""
    def scores(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The score of each row, minus its energy; higher is better."""
    def z_scores(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores in deviations from their mean: `(score - mean) / deviation`."""
    def require_identity(self, identity: Identity | None, name: str) -> None:
        """Raises `IdentityMismatchError` unless the head was trained on this encoder's embeddings.

        An unknown encoder (`None`) is a different one. `name` stands for it in the error.
        """
    @property
    def dim(self) -> int:
        """Length of the embeddings that it takes."""
    @property
    def dims(self) -> list[int]:
        """Lengths of the input, of the hidden layers, and of the output, which is 1."""
    @property
    def members(self) -> int:
        """Number of networks whose energies are averaged."""
    @property
    def identity(self) -> Identity:
        """The encoder of the embeddings that it was trained on."""
    @property
    def metadata(self) -> dict[str, Any]:
        """The whole `head` object of the file."""
    @property
    def score_scale(self) -> tuple[float, float]:
        """Mean and deviation of the score over the validation states."""
    @property
    def mixing(self) -> dict[str, Any] | None:
        """How a search mixes the value with its policy, as in the file; `None` if not said."""
    @property
    def path(self) -> str:
        """The file that was opened."""

@final
class NoEmbedding:
    """Why a state has no embedding."""

    @property
    def kind(self) -> str:
        """Why in one word.

        `bad`, `too_long`, `failed` (no token, no memory), `error` (the encoder raised), or
        `not_text` (the state is no `str`, or has half of a surrogate pair).
        """
    @property
    def reason(self) -> str:
        """The reason in words."""
    @property
    def traceback(self) -> str | None:
        """Where the encoder raised."""

@final
class CachedEncoder:
    """A cache in front of an encoder, for many threads.

    Known states cost a lookup; others are encoded once, on one thread, in batches that serve many
    callers. Every encoded embedding passes the row checks before a caller gets it. Embeddings are
    copies, which the caller may change.

    Ctrl-C ends a wait. Encoders that are still open when the interpreter ends are closed then, and
    what they appended is saved. In a process that was forked since, `encode` raises an
    `EncodingError`.

    Args:
        encoder: An `ebm_encode.Encoder`, or any object with its `dim`, `identity` and
            `encode_into`. Embeddings are copied from the array that it is given. A report may have
            a `token_digest`, a 64-bit number by which prompts with the same tokens are known: only
            they may have equal embeddings.
        cache: A cache of the same encoder; `IdentityMismatchError` lists what differs.
        max_wait: Seconds that a batch waits for other callers, where there were several of late.
        max_states: Most states of a batch.
        max_bytes: Most bytes of text in a batch.
        queue: Most requests that wait; whoever asks then waits as well.
        memory_bytes: Most bytes of encoded embeddings that are kept.
        append_to: A cache, a file or a folder of parts, to which encoded embeddings are appended,
            crash-safe.
        checkpoint_interval: No appended embedding stays unsaved for longer than this, in seconds.
        allow_other_identity: Serve a cache of a different encoder.
    """

    def __new__(
        cls,
        encoder: Any,
        cache: EmbeddingCache | MappedCache | None = None,
        *,
        max_wait: float = 0.003,
        max_states: int = 256,
        max_bytes: int = 65536,
        queue: int = 1024,
        memory_bytes: int = 1073741824,
        append_to: str | PathLike[str] | None = None,
        checkpoint_interval: float = 60.0,
        allow_other_identity: bool = False,
    ) -> Self: ...
    def encode(
        self, states: Any, *, timeout: float | None = None
    ) -> list[NDArray[np.float32] | NoEmbedding]:
        """The embedding of each state, float32 `[dim]`, or why there is none.

        A state that is not text has none, and does not affect the others.

        Raises `TimeoutError` if it takes longer than `timeout` seconds.
        """
    def encode_reported(
        self, states: list[str], *, timeout: float | None = None
    ) -> list[tuple[NDArray[np.float32] | NoEmbedding, int | None, bool | None, int | None]]:
        """The same, each with the prompt's length in tokens before any cut, cut or not, and digest.

        The digest is that of `RowReport.token_digest`. All three are `None` where there is no
        embedding, but the length of a prompt that is too long; and where the embedding comes from
        the cache, which does not record them.
        """
    def get(self, state: str) -> NDArray[np.float32] | None:
        """The embedding of a state that is known already; nothing is encoded."""
    def statistics(self) -> dict[str, Any]:
        """Counts since the start, and latencies of requests (`p50`, `p95`, `p99`) in seconds."""
    def checkpoint(self) -> None:
        """Saves what was encoded since the last time."""
    def commit(self, provenance: dict[str, Any]) -> int | None:
        """Shows what was appended so far to readers of the folder `append_to`, and continues.

        Returns its number of rows. Raises `ArgumentError` if it is a file.
        """
    def finish(self, provenance: dict[str, Any]) -> int | None:
        """Ends the encoder and writes `append_to`, if given; returns its number of rows."""
    @property
    def dim(self) -> int:
        """Length of every embedding."""

@final
class CacheWriter:
    """Writes one cache file, or a new part of a folder that exists.

    Locks the output, checks, checkpoints, resumes, merges.

    `CacheWriter(output)` takes the lock (`OutputLockedError`), one for all spellings of the output;
    `open` says what will be written.
    """

    def __new__(cls, output: str | PathLike[str]) -> Self: ...
    def open(
        self,
        identity: Identity,
        dim: int,
        *,
        checkpoint_rows: int = 2000,
        checkpoint_seconds: float = 60.0,
        overwrite: bool = False,
    ) -> None:
        """Resumes what is there. Raises `IdentityMismatchError` if a different encoder made it."""
    def append(self, states: list[str], rows: NDArray[np.float32]) -> list[BadRow | None]:
        """Offers embeddings, float32 `[len(states), dim]`, C order; only read.

        Returns why each was refused, or `None` for one that is in the cache now.
        """
    def adopt(
        self,
        cache: str | PathLike[str],
        wanted: list[str],
        *,
        made_by: Identity | None = None,
    ) -> int:
        """Takes wanted embeddings from a cache of the same identity; returns how many.

        Args:
            cache: The cache.
            wanted: The states whose embeddings are taken, where it has them.
            made_by: The cache's identity, where it is in the form of an earlier version; the caller
                must know that the embeddings of these states are the same under both.
        """
    def allow_equal(self, left: str, right: str) -> None:
        """Notes that two states have the same tokens, and so may have equal embeddings."""
    def retract(self, state: str) -> bool:
        """Takes back an accepted embedding; returns whether there was one."""
    def contains_many(self, states: list[str]) -> list[bool]:
        """Whether the cache will have an embedding of each state."""
    def former_many(self, states: list[str]) -> list[bool]:
        """Whether the embedding of each state is one of the former output's."""
    def stored(self, key: str) -> tuple[str, NDArray[np.float32]] | None:
        """Text and embedding of an accepted state, by its hex key, as they are stored."""
    def new_rows(self) -> NDArray[np.uint64]:
        """Numbers of the rows that are not part of the former output, uint64 `[n]`, ascending."""
    def read(self, numbers: list[int]) -> tuple[list[str], NDArray[np.float32]]:
        """Texts and embeddings by row number, in the order asked, as they are stored."""
    def norm_outliers(self) -> list[tuple[str, BadRow]]:
        """Accepted states whose embeddings are norm outliers."""
    def checkpoint(self) -> None:
        """Writes what is pending to the disk. Raises `CacheIOError`; earlier checkpoints stand."""
    def commit(self, provenance: dict[str, Any]) -> int:
        """Adds the rows so far to the output as a part that readers see, and continues.

        Returns the output's number of rows. Raises `ArgumentError` if the output is a file, and
        `OutputConflictError` if another process changed it; the rows then stay as checkpoints.
        """
    def finish(self, provenance: dict[str, Any]) -> tuple[int, list[tuple[str, BadRow]], bool]:
        """Writes the output in one atomic step.

        Returns the number of rows; the states without an embedding whose stored one is bad, with
        the reason; and whether it was written at all (not if nothing was new or taken back). Raises
        `OutputConflictError` if another process changed the output and it lacks rows of this
        writer; those stay as checkpoints.
        """
    def left_out(self) -> list[tuple[str, BadRow]]:
        """Stored embeddings found bad on opening or at a commit, with the reason."""
    def reject(self, reason: str) -> None:
        """Marks the checkpointed rows as wrong, so that no run resumes from them."""
    def close(self) -> None:
        """Releases the lock. What is not checkpointed is lost."""
    def __len__(self) -> int: ...
    def discarded(self) -> list[str]:
        """What was wrong with damaged shards that were removed."""
    def work_folder(self) -> str:
        """The folder of the checkpoints."""

def check_rows(
    states: list[str],
    ids: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    rows: NDArray[np.float32],
) -> list[BadRow | None]:
    """Checks the embeddings of one call among themselves; why each is bad, or `None`.

    Args:
        states: The `n` texts.
        ids: Their token ids end to end.
        offsets: Where each begins in `ids`, and the end, int64 `[n + 1]`.
        rows: Their embeddings, float32 `[n, dim]`.

    Norms are not compared, so that a verdict does not depend on what else is in the call.
    """

def audit(path: str | PathLike[str], *, examples: int = 5) -> dict[str, Any]:
    """Checks every row of a cache, in one pass; the report as a dictionary."""

def compact(folder: str | PathLike[str]) -> tuple[int, list[tuple[str, BadRow]], bool]:
    """Merges all parts of a folder into one; returns what `CacheWriter.finish` does.

    The list of skipped embeddings also has those of states that have a good one instead.

    Raises `ArgumentError` for a file, and for parts of an unknown encoder.
    """

def describe(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """What each file of a cache says about itself, without reading rows."""

def plan_padded(lengths: NDArray[np.uint32], max_tokens: int, max_rows: int) -> list[list[int]]:
    """Batches of like length, longest first, as indices into `lengths` (uint32 `[n]`)."""

def plan_windows(
    ids: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    max_nodes: int,
    max_rows: int,
    *,
    max_path_tokens: int | None = None,
    share: bool = True,
) -> list[list[int]]:
    """Packed batches of sequences that begin alike, as indices, under a budget of trie nodes.

    Args:
        ids: Token ids end to end.
        offsets: Where each sequence begins in `ids`, and the end, int64 `[n + 1]`.
        max_nodes: Most trie nodes of a packed batch; a longer sequence is a batch by itself.
        max_rows: Most sequences of a packed batch.
        max_path_tokens: Most tokens on the paths of the sequences that have a node of their own,
            shared prefixes counted for each; `None`: any number.
        share: Whether a prefix that neighbours have in common counts once.
    """

def count_nodes(ids: NDArray[np.uint32], offsets: NDArray[np.int64]) -> int:
    """Number of unique tokens after prefix sharing: nodes of the trie of all sequences."""

@final
class MappedCache(Cache):
    """A cache that stays in its files; embeddings are copied out of the system's page cache.

    Many processes share one copy of them, and opening reads only the states. A page's checksum and
    embeddings are checked when one of them is first asked for. Only files with pages as our writer
    makes them can be mapped; others raise `CacheFormatError`.

    Replace a file by renaming while it is mapped, never by writing into it: a file that changed
    in place raises `CacheIOError`, and one that is cut short during a read ends the process
    (`SIGBUS`).
    """

    @staticmethod
    def open(
        path: str | PathLike[str], *, strict: bool = True, verify_checksums: bool = True
    ) -> MappedCache:
        """Opens a cache file, or a folder of them."""

@final
class PathAttention:
    """Threads that compute attention of a packed batch over its paths, in float32 on a CPU."""

    def __new__(cls, threads: int) -> Self: ...
    def attend(
        self,
        query: NDArray[np.float32],
        key: NDArray[np.float32],
        value: NDArray[np.float32],
        key_before: NDArray[np.float32],
        value_before: NDArray[np.float32],
        starts: NDArray[np.int64],
        kept: NDArray[np.int64],
        output: NDArray[np.float32],
        *,
        scale: float,
        reach: int | None = None,
    ) -> None:
        """Writes `softmax(scale * Q K^T) V` along paths.

        Args:
            query: `[H, N, D]`, any strides.
            key: `[G, N, D]`; `G` divides `H`, and neighbouring query heads share one.
            value: `[G, N, E]`.
            key_before: Keys by depth, `[G, P, D]`, of the path on which the first run stands, as
                far as it was computed before; `P` may be 0.
            value_before: Their values, `[G, P, E]`.
            starts: First node of each run of new nodes, and `N`, `[R + 1]`; no run is empty.
            kept: Depth of each run's first node, `[R]`.
            output: `[N, H, E]`, written.
            scale: What scores are multiplied with.
            reach: No query sees a key that many positions before it, or more.

        Raises:
            ArgumentError: If the arrays do not fit each other, or the runs are no depth-first walk.
        """

@final
class Trie:
    """The trie of some sequences (N nodes, S sequences), in depth-first order.

    Node `j` is an ancestor of `i`, or `i` itself, exactly if `j <= i < ends[j]`. The path of
    sequence `s` is the first `kept[s]` nodes of its predecessor's path and then the nodes
    `starts[s]` to `starts[s + 1]`.
    """

    def __new__(
        cls, ids: NDArray[np.uint32], offsets: NDArray[np.int64], *, share: bool = True
    ) -> Trie: ...
    @property
    def ids(self) -> NDArray[np.int64]:
        """Token of each node, `[N]`."""
    @property
    def depths(self) -> NDArray[np.int64]:
        """Position of each node in its sequences, from 0, `[N]`."""
    @property
    def ends(self) -> NDArray[np.int64]:
        """One past the last descendant of each node, `[N]`."""
    @property
    def parents(self) -> NDArray[np.int64]:
        """Parent of each node, -1 for a first token, `[N]`."""
    @property
    def starts(self) -> NDArray[np.int64]:
        """First own node of each sequence, and N, `[S + 1]`."""
    @property
    def kept(self) -> NDArray[np.int64]:
        """How many tokens each sequence has from its predecessor, `[S]`."""
    @property
    def leaves(self) -> NDArray[np.int64]:
        """Last node of each sequence, -1 for an empty one, `[S]`."""

def prefers_mapped(path: str | PathLike[str]) -> bool:
    """Whether a cache takes more than half of the memory that is free, and can be mapped."""

def is_remote(path: str | PathLike[str]) -> bool:
    """Whether a path is a URL of an object store."""

def path_kind(path: str | PathLike[str]) -> Literal["missing", "file", "folder"]:
    """What a path or URL leads to. Raises `ArgumentError` for a URL that cannot be used."""

def list_files(folder: str | PathLike[str], extension: str) -> list[str]:
    """The files of a folder with this extension, by name."""

def read_file(path: str | PathLike[str]) -> bytes | None:
    """All bytes of a file; `None` where there is none."""

def write_file(path: str | PathLike[str], content: bytes) -> None:
    """Writes a file that is there whole or not at all. Raises `CacheIOError`."""

def remove_file(path: str | PathLike[str]) -> None:
    """Removes a file if there is one."""

def state_format_name(name: str) -> str:
    """The name of a printed form of states with its version: `lean` is `lean-1`.

    Raises `ArgumentError` for other names than `as-given`, `lean`, `pantograph` and `burnqed`.
    """

def detect_state_formats(state: str) -> list[str]:
    """The formats that a state can be in, by name with version; none if it is no proof state."""

def source_format_of(states: Any, source: str | None, target: str) -> str:
    """The format from which to convert states to `target`: `source`, or what the texts show.

    Raises `StateFormatError` if that is not given, and the texts would be converted differently
    from formats that they can be in.
    """

def convert_states(
    states: Any, source: str, target: str
) -> tuple[list[str | None], list[tuple[int, str]]]:
    """The states in another format, `None` for those that cannot be converted.

    Returns also the index of each of these, and why.
    """

def state_overlap(
    cache: str | PathLike[str], states: Any, source: str | None = None
) -> dict[str, Any]:
    """How many of some states a cache holds, as they are and converted.

    Of the cache only texts are read, unless it is in an object store.

    Returns `states` (distinct ones), `found`, `format` (which the cache's identity says), and, if
    converting finds more, `converted_to`, `found_converted` and `hint`, else `None` there; and the
    `message`.
    """
