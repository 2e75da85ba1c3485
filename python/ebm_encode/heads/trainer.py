"""`train_head`: from a cache and recorded searches to a head file."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode._core import (
    EmbeddingCache,
    EnergyHead,
    MappedCache,
    __version__,
    is_remote,
)
from ebm_encode.errors import ArgumentError
from ebm_encode.heads.corpus import Corpus, read_corpus
from ebm_encode.heads.curves import SUFFIXES, draw_curves
from ebm_encode.heads.head_file import Layers, require_same, write_head
from ebm_encode.heads.material import (
    Material,
    cache_rows,
    in_cache,
    make_lesson,
    prepare,
    require_encoder,
)
from ebm_encode.heads.mixing import Mixing, choose_mixing, scale_of
from ebm_encode.heads.model import energies, folded
from ebm_encode.heads.options import HIDDEN, HeadOptions
from ebm_encode.heads.probe import Probe, probe_format
from ebm_encode.heads.rows import Rows, chunks
from ebm_encode.heads.siblings import rank_siblings
from ebm_encode.heads.training import Lesson, Trained, device_of, train
from ebm_encode.options import PrintedFormat
from ebm_encode.state_formats import format_of

OnEpoch = Callable[[str, dict[str, float]], None]


@dataclass
class HeadReport:
    """What a training did.

    Attributes:
        head: The head as it was written.
        architecture: Of the layers: `linear`, `mlp` or `origin`.
        counts: Theorems, states, rows, and what was skipped.
        probes: What print style tells apart.
        chance: Validation rank-1 of a random order, by question.
        best: Validation figures of the epoch that was kept, by training.
        mixing: The chosen mixture.
        replayed: Mean expansions of all mixtures on the validation theorems.
        missing: States that the cache lacks.
    """

    head: EnergyHead
    architecture: str
    counts: dict[str, int]
    probes: list[Probe]
    chance: dict[str, float]
    best: dict[str, dict[str, float]]
    mixing: Mixing
    replayed: list[dict[str, float]]
    missing: list[str] = field(default_factory=list)


def fingerprint(lesson: Lesson, identity: str, options: HeadOptions, what: str) -> str:
    """Of everything that a training depends on, the embeddings included, hex."""
    content = [
        lesson.corpus.files, lesson.digest, identity, options.as_dict(), what, __version__,
        torch.__version__,
    ]  # fmt: skip
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


class HeadTrainer:
    """Trains the members of a head, with checkpoints beside the output.

    Args:
        lesson: What to train on.
        options: How.
        identity: The encoder's identity as JSON; it is part of what a checkpoint must match.
        folder: Where checkpoints go.
        device: Torch device.
        on_epoch: Told of each epoch with the training's name.
    """

    def __init__(
        self,
        lesson: Lesson,
        options: HeadOptions,
        identity: str,
        *,
        folder: Path | None = None,
        device: str = "cpu",
        on_epoch: OnEpoch | None = None,
    ) -> None:
        self._lesson, self._options, self._identity = lesson, options, identity
        self._folder, self._device, self._on_epoch = folder, device, on_epoch
        self.histories: dict[str, list[dict[str, float]]] = {}
        self.best: dict[str, dict[str, float]] = {}

    def run(self) -> tuple[str, list[Trained]]:
        """Trains; returns the architecture that was taken, and its members."""
        wanted = self._options.architecture
        candidates = ("linear", "mlp") if wanted == "auto" else (wanted,)
        first = {name: self.member(name, self._options.seed) for name in candidates}
        chosen = max(candidates, key=lambda name: first[name].best["rank"])
        others = range(self._options.seed + 1, self._options.seed + self._options.members)
        return chosen, [first[chosen], *(self.member(chosen, seed) for seed in others)]

    def member(self, architecture: str, seed: int) -> Trained:
        """Trains one member."""
        name = f"{architecture}-{seed}"
        kept_in = self._folder / f"{name}.pt" if self._folder else None
        done = train(
            self._lesson,
            HIDDEN[architecture],
            self._options,
            seed=seed,
            device=self._device,
            kept_in=kept_in,
            fingerprint=fingerprint(self._lesson, self._identity, self._options, name),
            on_epoch=self._on_epoch and (lambda epoch: self._tell(name, epoch)),
        )
        self.histories[name], self.best[name] = done.history, done.best
        return done

    def _tell(self, name: str, epoch: dict[str, float]) -> None:
        if self._on_epoch:
            self._on_epoch(name, epoch)


def mean_energies(
    members: Sequence[Layers], rows: Rows, numbers: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The energies of an ensemble of folded heads, computed in float64, `[n]`."""
    found = [np.empty(0)]
    for some in chunks(numbers, rows.dim):
        taken = rows.take(some).double()
        found.append(np.mean([energies(layers, taken).numpy() for layers in members], axis=0))
    return np.concatenate(found)


def train_head(
    cache: EmbeddingCache | MappedCache,
    trajectories: list[str],
    output: str | os.PathLike[str],
    options: HeadOptions | None = None,
    *,
    device: str = "cpu",
    expansions: list[str] | None = None,
    states_in: PrintedFormat | None = None,
    figure: str | os.PathLike[str] | None = None,
    log_file: str | os.PathLike[str] | None = None,
    on_start: Callable[[dict[str, int], list[Probe], dict[str, float]], None] | None = None,
    on_epoch: OnEpoch | None = None,
) -> HeadReport:
    """Trains an energy head on the embeddings of recorded searches, and writes it.

    Killed at any moment, the same call resumes after the last whole epoch and ends with the same
    head; its checkpoints stand in `OUTPUT.training` until then.

    Args:
        cache: Embeddings of the trajectories' states, of a known encoder.
        trajectories: Files of searches, folders of them, or glob patterns.
        output: The head file to write.
        options: How to train.
        device: Torch device.
        expansions: Files that say which states were expanded.
        states_in: The printed form that the states are in, if the cache is of an encoder with a
            state format: they are converted to that. By default what the texts show.
        figure: Picture of the learning curves, .svg, .png or .pdf.
        log_file: JSON lines, one an epoch.
        on_start: Told, before training, of the counts, what print style tells apart, and chance.
        on_epoch: Told of each epoch with the training's name.

    Raises:
        IdentityMismatchError: If the cache does not say which encoder made it.
        InputError: If the trajectories hold too little, or the cache lacks too many states.
        BadRowsError: If a mapped cache's embeddings are bad.
        ArgumentError: If an option has no meaning.
    """
    options = options or HeadOptions()
    output = Path(output)
    require_places(output=output, figure=figure, log_file=log_file)
    device_of(device)
    identity = require_encoder(cache)
    corpus = read_corpus(
        trajectories,
        options.labels,
        expansions,
        state_format=format_of(identity),
        states_in=states_in,
    )
    material = prepare(corpus, in_cache(corpus, cache), options)
    rows = cache_rows(corpus, cache, material.usable)
    lesson = make_lesson(material, rows)
    counts = _counts(material, lesson)
    probes = probe_format(corpus, options.seed)
    chance = _ranks(lesson, np.zeros(len(material.usable)))
    if on_start:
        on_start(counts, probes, chance)
    told = _EpochLog(log_file, on_epoch)
    folder = output.with_name(output.name + ".training")
    trainer = HeadTrainer(
        lesson, options, identity.to_json(), folder=folder, device=device, on_epoch=told.epoch
    )
    architecture, members = trainer.run()
    layers = [folded(member.head) for member in members]
    measured = mean_energies(layers, rows, lesson.validation)
    values = np.full(len(material.usable), np.nan)
    values[lesson.validation] = -measured
    scale = scale_of(-measured)
    mixing, replayed = choose_mixing(corpus, material.split.validation, values, scale)
    draft = output.with_name(f".{output.name}.{os.getpid()}.safetensors")
    details = {
        "mixing": mixing.as_dict(),
        "training": {
            "options": options.as_dict(),
            "architecture": architecture,
            "split": _named(material),
            "seen_roots": root_digests(corpus, (*material.split.train, *material.split.validation)),
            "best": trainer.best,
            "validation": _ranks(lesson, values),
            "chance": chance,
            "probes": [{"what": p.what, "auc": p.auc, "flags": p.strongest} for p in probes],
            "replayed": replayed,
        },
        "data": {"cache": _absolute(cache.path), "trajectories": corpus.files, "counts": counts},
        "versions": versions(),
    }
    checked = lesson.validation[:512]
    try:
        written = write_head(draft, layers, identity, scale, details)
        require_same(written, rows.take(checked), measured[:512])
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)
    head = EnergyHead.open(output)
    if figure is not None:
        draw_curves(figure, trainer.histories, chance)
    shutil.rmtree(folder, ignore_errors=True)
    return HeadReport(
        head,
        architecture,
        counts,
        probes,
        chance,
        trainer.best,
        mixing,
        replayed,
        material.missing,
    )


def require_places(**places: str | os.PathLike[str] | None) -> None:
    """Refuses outputs that could not be written, before any work.

    Raises:
        ArgumentError: With the argument.
    """
    for argument, place in places.items():
        if place is None:
            continue
        path = Path(place)
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ArgumentError(
                f"`{argument}` {path}: expected the name of a file, in a folder that exists"
            )
        if argument == "figure" and path.suffix not in SUFFIXES:
            raise ArgumentError(
                f"`figure` {path}: expected a name that ends in {', '.join(SUFFIXES)}"
            )


def root_digests(corpus: Corpus, theorems: Sequence[int]) -> list[str]:
    """Short digests of the texts that searches start from, by which a theorem is known again."""
    texts = {corpus.graphs[n].states[root] for n in theorems for root in corpus.graphs[n].roots}
    return sorted(root_digest(text) for text in texts)


def root_digest(text: str) -> str:
    """16 hex digits."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _absolute(path: str) -> str:
    return path if is_remote(path) else str(Path(path).absolute())


def versions() -> dict[str, str]:
    """Of the software that makes a head."""
    return {"ebm-encode": __version__, **{n: metadata.version(n) for n in ("torch", "numpy")}}


class _EpochLog:
    """JSON lines, one an epoch, as they come. A resumed training tells its first epochs again."""

    def __init__(self, path: str | os.PathLike[str] | None, on_epoch: OnEpoch | None) -> None:
        self._path = None if path is None else Path(path)
        self._on_epoch = on_epoch
        if self._path:
            self._path.write_text("", "utf-8")

    def epoch(self, name: str, measured: dict[str, float]) -> None:
        """Writes an epoch's line."""
        if self._path:
            with self._path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"training": name} | measured) + "\n")
        if self._on_epoch:
            self._on_epoch(name, measured)


def _named(material: Material) -> dict[str, Any]:
    graphs, split = material.corpus.graphs, material.split
    return {
        "train": [graphs[n].theorem for n in split.train],
        "validation": [graphs[n].theorem for n in split.validation],
        "test": [graphs[n].theorem for n in split.test],
    }


def _ranks(lesson: Lesson, scores: NDArray[np.float64]) -> dict[str, float]:
    """Validation rank-1 of scores by number, by question."""
    return {
        question: float(rank_siblings(sets, sets.look_up(scores))["rank1"].mean())
        for question, sets in lesson.sets.items()
        if len(sets)
    }


def _counts(material: Material, lesson: Lesson) -> dict[str, int]:
    corpus, split = material.corpus, material.split
    seen = ~material.fresh
    statuses = np.concatenate([label.status for label in corpus.labels])
    return {
        "rows": corpus.counts.rows,
        "loops": corpus.counts.loops,
        "without_parent": corpus.counts.without_parent + corpus.counts.ambiguous,
        "empty": corpus.counts.empty,
        "theorems": len(corpus.graphs),
        "solved": sum(label.solved for label in corpus.labels),
        "train": len(split.train),
        "validation": len(split.validation),
        "test": len(split.test),
        "states": len(corpus.texts),
        "proved": int((statuses == 0).sum()),
        "exhausted": int((statuses == 1).sum()),
        "unknown": int((statuses == 2).sum()),  # noqa: PLR2004
        "missing": len(material.missing),
        "validation_states_in_train": int(seen[corpus.of(split.validation)].sum()),
        "test_states_in_train": int(seen[corpus.of(split.test)].sum()),
        **{f"validation_{question}": len(sets) for question, sets in lesson.sets.items()},
    }
