"""What an examination found."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One question to a server and what came back.

    Attributes:
        question: What was asked, in words.
        answer: What came back, in words.
        right: Whether it can be used.
        counts: Whether a wrong answer makes the server unsafe; questions as other clients ask them
            do not count, for this package asks in another way.
        advice: What to change.
    """

    question: str
    answer: str
    right: bool
    counts: bool = True
    advice: str = ""


@dataclass
class Diagnosis:
    """The verdict on a server.

    Attributes:
        url: The server.
        kind: `sglang`, `vllm` or `remote`.
        about: What it says of itself; JSON values only.
        findings: The questions and answers.
        not_asked: What was not asked, and why.
    """

    url: str
    kind: str
    about: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)
    not_asked: list[str] = field(default_factory=list)

    @property
    def safe(self) -> bool:
        """Whether this package can use its embeddings, as far as was asked."""
        counted = [finding for finding in self.findings if finding.counts]
        return bool(counted) and all(finding.right for finding in counted)

    def to_json(self) -> dict[str, Any]:
        """All of it; JSON values only."""
        return asdict(self) | {"safe": self.safe}
