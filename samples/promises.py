"""How the demos tell what they do, and end where a promise does not hold."""

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)


class Broken(Exception):  # noqa: N818  (a promise, not an error)
    """A promise of this project does not hold here."""


def require(kept: bool, promise: str) -> None:  # noqa: FBT001
    if not kept:
        raise Broken(promise)


def step(title: str) -> None:
    console.print(f"\n[bold]{title}[/bold]")
