"""Training of one head: batches to losses to weights, with early stopping, and resumable."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode.errors import ArgumentError, TrainingError, one_line
from ebm_encode.heads import checkpoint, losses
from ebm_encode.heads.batches import Batch, SiblingBatches
from ebm_encode.heads.corpus import Corpus
from ebm_encode.heads.model import Head
from ebm_encode.heads.options import HeadOptions
from ebm_encode.heads.origin_batches import ContrastiveBatch, ContrastiveBatches
from ebm_encode.heads.rows import Rows, chunks
from ebm_encode.heads.siblings import SiblingSets, rank_siblings

History = list[dict[str, float]]
OnEpoch = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Lesson:
    """What one head is trained on.

    Attributes:
        corpus: The theorems.
        rows: Input rows by the corpus's numbers.
        usable: Which numbers have a row, bool.
        train: Theorems to learn from.
        validation: Numbers of the states whose energies choose the epoch, int64 `[v]`.
        sets: The sibling sets of the validation theorems, by question.
        moments: Mean and deviation of the training rows.
        digest: Of the training and validation rows, hex.
    """

    corpus: Corpus
    rows: Rows
    usable: NDArray[np.bool_]
    train: Sequence[int]
    validation: NDArray[np.int64]
    sets: dict[str, SiblingSets]
    moments: tuple[torch.Tensor, torch.Tensor]
    digest: str


@dataclass(frozen=True)
class Trained:
    """A trained head.

    Attributes:
        head: With the weights of its best epoch.
        history: What each epoch measured.
        best: The best epoch's.
    """

    head: Head
    history: History
    best: dict[str, float]


def train(
    lesson: Lesson,
    hidden: Sequence[int],
    options: HeadOptions,
    *,
    seed: int,
    device: str = "cpu",
    kept_in: Path | None = None,
    fingerprint: str = "",
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """Trains a head until the validation rank no longer rises.

    The same lesson, options and seed give the same bits on one device with one number of threads,
    however often the training was killed and resumed between.

    Args:
        lesson: What to train on.
        hidden: Widths of the hidden layers.
        options: How.
        seed: Seed of weights, order and dropout.
        device: Torch device.
        kept_in: File of the checkpoint, written after each epoch.
        fingerprint: Of data, options and versions: what a checkpoint must have to be resumed.
        on_epoch: Told of each epoch, and of those of a checkpoint.
    """
    with _reproducible(device_of(device)):
        training = _Training(lesson, hidden, options, seed=seed, device=device)
        known = checkpoint.load(kept_in, fingerprint) if kept_in else None
        if known is not None:
            training.restore(known)
            for epoch in training.history:
                _tell(on_epoch, epoch)
        while not training.done:
            _tell(on_epoch, training.run_epoch())
            if kept_in:
                checkpoint.save(kept_in, training.state() | {"fingerprint": fingerprint})
    return training.result()


def _tell(on_epoch: OnEpoch | None, measured: dict[str, float]) -> None:
    if on_epoch is not None:
        on_epoch(measured)


def predict(
    head: Head, rows: Rows, numbers: NDArray[np.int64], device: str = "cpu"
) -> NDArray[np.float64]:
    """The energies of some rows, float64 `[n]`, without dropout."""
    before = head.training
    head.eval()
    found = [np.empty(0)]
    with torch.inference_mode():
        found += [
            head(rows.take(some).to(device)).double().cpu().numpy()
            for some in chunks(numbers, rows.dim)
        ]
    head.train(before)
    return np.concatenate(found)


class _Training:
    """The state of a training between two epochs."""

    def __init__(
        self,
        lesson: Lesson,
        hidden: Sequence[int],
        options: HeadOptions,
        *,
        seed: int,
        device: str,
    ) -> None:
        self._lesson, self._options, self._seed, self._device = lesson, options, seed, device
        make = SiblingBatches if options.loss == "sibling" else ContrastiveBatches
        self._batches = make(
            lesson.corpus,
            lesson.train,
            lesson.usable,
            batch_states=options.batch_states,
            seed=seed,
        )
        torch.manual_seed(seed)
        self._head = Head(
            *lesson.moments, hidden, dropout=options.dropout, spectral_norm=options.spectral_norm
        ).to(device)
        groups = self._head.parameter_groups(options.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, lr=options.learning_rate)
        self._steps = max(1, self._batches.count()) * options.epochs
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)
        self.history: History = []
        self._best: dict[str, Any] = {}

    def _rate(self, step: int) -> float:
        """Linear warm-up, then cosine to zero."""
        warmup = self._options.warmup * self._steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + cos(pi * min(1.0, (step - warmup) / max(1.0, self._steps - warmup))))

    @property
    def done(self) -> bool:
        """Whether the last epoch was reached, or no better one came for too long."""
        if len(self.history) >= self._options.epochs:
            return True
        return bool(self.history) and (
            len(self.history) - self._best_epoch["epoch"] >= self._options.patience
        )

    @property
    def _best_epoch(self) -> dict[str, float]:
        return max(self.history, key=lambda epoch: (epoch["rank"], -epoch["epoch"]))

    def run_epoch(self) -> dict[str, float]:
        """Trains for one epoch and measures it on the validation states."""
        number = len(self.history) + 1
        # Dropout and the start of a resumed epoch: as if it had never been interrupted.
        torch.manual_seed(self._seed * 1_000_003 + number)
        self._head.train()
        sums = np.zeros(2)
        for batch, rows in _ahead(self._batches.epoch(number), self._lesson.rows):
            energy = self._head(rows.to(self._device))
            loss = self._loss(energy, batch)
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._head.parameters(), self._options.clip)
            self._optimizer.step()
            self._schedule.step()
            sums += float(loss.detach()), 1
            if not np.isfinite(sums[0]):
                raise TrainingError(
                    f"training diverged in epoch {number}: the loss is no number\n"
                    "hint: lower the learning rate with `learning_rate`"
                )
        measured = {"epoch": number, "loss": float(sums[0] / max(sums[1], 1)), **self._measure()}
        self.history.append(measured)
        if self._best_epoch is measured:
            self._best = {name: t.clone() for name, t in self._head.state_dict().items()}
        return measured

    def _loss(self, energy: torch.Tensor, batch: Batch | ContrastiveBatch) -> torch.Tensor:
        options = self._options
        if isinstance(batch, ContrastiveBatch):
            table = energy.view(batch.states.shape)
            distance = losses.origin_distance_loss(table[:, 0], batch.distance.to(energy.device))
            if options.loss == "infonce":
                ranked = losses.infonce_loss(table, self._head.log_temperature)
            else:
                ranked = losses.margin_loss(table)
            return ranked + options.distance_weight * distance
        groups, targets, nearer, farther, distance = (
            part.to(energy.device)
            for part in (batch.groups, batch.targets, batch.nearer, batch.farther, batch.distance)
        )
        proved = distance >= 0
        return (
            losses.sibling_loss(energy, groups, targets)
            + options.pair_weight * losses.pair_loss(energy, nearer, farther)
            + options.distance_weight
            * losses.distance_loss(energy[proved], distance[proved], options.distance_scale)
        )

    def _measure(self) -> dict[str, float]:
        lesson = self._lesson
        scores = np.full(len(lesson.usable), np.nan)
        found = predict(self._head, lesson.rows, lesson.validation, self._device)
        if not np.isfinite(found).all():
            raise TrainingError(
                "training diverged: energies of validation states are no numbers\n"
                "hint: lower the learning rate with `learning_rate`"
            )
        scores[lesson.validation] = -found
        measured = {
            question: float(rank_siblings(sets, sets.look_up(scores))["rank1"].mean())
            for question, sets in lesson.sets.items()
            if len(sets)
        }
        right = lesson.corpus.proved[lesson.validation]
        gap = found[~right].mean() - found[right].mean() if right.any() and not right.all() else 0.0
        return {
            **measured,
            "rank": float(np.mean([*measured.values()])),
            "energy_gap": float(gap),
            "energy_deviation": float(found.std()),
        }

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on."""
        return {
            "head": self._head.state_dict(),
            "best": self._best,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""
        self._head.load_state_dict(state["head"])
        self._best = state["best"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.history = state["history"]

    def result(self) -> Trained:
        """The head of the best epoch."""
        self._head.load_state_dict(self._best)
        return Trained(self._head.cpu().eval(), self.history, self._best_epoch)


def _ahead(batches: Iterator[Any], rows: Rows) -> Iterator[tuple[Any, torch.Tensor]]:
    """Batches with their rows; the next one is drawn and copied while one is worked on."""

    def following() -> tuple[Any, torch.Tensor] | None:
        batch = next(batches, None)
        return None if batch is None else (batch, rows.take(batch.states.reshape(-1)))

    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(following)
        while (batch := coming.result()) is not None:
            coming = pool.submit(following)
            yield batch


def device_of(device: str) -> torch.device:
    """A torch device by name.

    Raises:
        ArgumentError: If there is none of this name.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"`device` {device}: {one_line(error)}") from error
    return found


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Has torch use its deterministic kernels, and leaves the host's random numbers alone."""
    before = torch.are_deterministic_algorithms_enabled()
    devices = [device] if device.type == "cuda" else []
    torch.use_deterministic_algorithms(mode=True)
    try:
        with torch.random.fork_rng(devices=cast("Any", devices)):
            yield
    finally:
        torch.use_deterministic_algorithms(mode=before)
