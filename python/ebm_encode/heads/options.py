"""Options of training and evaluation, with their defaults. Imports no torch."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ebm_encode.errors import ArgumentError
from ebm_encode.options import require

Architecture = Literal["auto", "linear", "mlp", "origin"]
"""`linear`; `mlp`: dim, 256, 64, 1; `origin`: dim, 2048, 1024, 512, 1, as the origin has it; `auto`
trains the first two and takes the one that ranks the validation siblings better."""

Loss = Literal["sibling", "infonce", "margin"]
"""`sibling` ranks recorded children of one parent; the others are the origin's."""

Labels = Literal["graph", "file"]
"""Whether labels come from the graph of recorded steps, or are the files' own."""

HIDDEN: dict[str, tuple[int, ...]] = {
    "linear": (),
    "mlp": (256, 64),
    "origin": (2048, 1024, 512),
}
"""Widths of the hidden layers."""

MIXTURE_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Weights of the value beside the policy that replay tries."""

DEPTH_EXPONENTS = (0.0, 0.5, 1.0)
"""Exponents of the depth, by which the policy's cumulative log-probability is normalised."""

DEFAULT_EXPONENT = 0.5


@dataclass(frozen=True)
class HeadOptions:
    """How a head is trained.

    Attributes:
        architecture: Which layers.
        loss: Which loss.
        labels: Which labels.
        dropout: Share of hidden values that are dropped in training.
        spectral_norm: Whether each layer's largest singular value is held at 1.
        members: Heads of an ensemble, with seeds `seed`, `seed + 1` and so on.
        seed: Seed of the split, the weights, the order and dropout.
        epochs: Most passes over the training states.
        patience: Epochs without a better validation rank after which training ends.
        batch_states: States of a batch, about.
        learning_rate: Of AdamW, after the warm-up and before the cosine.
        weight_decay: Of AdamW; biases have none.
        warmup: Share of all steps over which the learning rate rises.
        clip: Largest norm of the gradient.
        pair_weight: Of the pairs ordered by distance, in the loss `sibling`.
        distance_weight: Of the distance term, in every loss.
        distance_scale: Steps that count as one unit of energy in the distance term.
        validation: Share of the solved theorems that choose epoch, architecture and weight.
        test: Share of the solved theorems that training does not see.
        max_missing: Largest share of states that the cache may lack; they are listed.
    """

    architecture: Architecture = "auto"
    loss: Loss = "sibling"
    labels: Labels = "graph"
    dropout: float = 0.1
    spectral_norm: bool = False
    members: int = 1
    seed: int = 0
    epochs: int = 40
    patience: int = 8
    batch_states: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0
    pair_weight: float = 1.0
    distance_weight: float = 0.05
    distance_scale: float = 4.0
    validation: float = 0.15
    test: float = 0.15
    max_missing: float = 0.01

    def __post_init__(self) -> None:
        require("`architecture`", self.architecture, Architecture)
        require("`loss`", self.loss, Loss)
        require("`labels`", self.labels, Labels)
        for name in ("members", "epochs", "patience", "batch_states"):
            self._within(name, 1, 2**31)
        for name in ("learning_rate", "clip", "distance_scale"):
            self._within(name, 1e-12, 1e12)
        for name in ("weight_decay", "pair_weight", "distance_weight"):
            self._within(name, 0, 1e12)
        for name in ("dropout", "warmup", "max_missing"):
            self._within(name, 0, 1)
        for name in ("validation", "test"):
            self._within(name, 0.001, 0.9)
        self._within("seed", 0, 2**31)
        if self.validation + self.test > 0.95:  # noqa: PLR2004
            raise ArgumentError("`validation` and `test` leave nothing to train on")
        if self.dropout == 1:
            raise ArgumentError("`dropout` 1 drops everything: expected less")

    def _within(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not least <= value <= most:
            raise ArgumentError(f"`{name}` {value}: expected {least:g} to {most:g}")

    def as_dict(self) -> dict[str, Any]:
        """All options by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "HeadOptions":
        """The options that `as_dict` gave; names that this version does not have are skipped."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})
