"""What a relay counts. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """Counters of one relay, kept up to date by whoever causes what they count."""

    accepted: int = 0
    open: int = 0
    finished: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    """By reason: `observe.relaying.FAILURES`."""
    links: int = 0
    framed: int = 0
    from_downstream: int = 0
    """Bytes that tunnels have not counted."""
    from_upstream: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    responses: int = 0
    dropped: int = 0
    unanswered: int = 0
    """Requests whose turn came, and that got no whole answer."""

    def accept(self) -> None:
        """A downstream connection begins."""
        self.accepted += 1
        self.open += 1

    def end(self, failure: str = "") -> None:
        """A downstream connection is over, for this reason if it failed."""
        self.open -= 1
        if failure:
            self.failed[failure] = self.failed.get(failure, 0) + 1
        else:
            self.finished += 1

    def answer(self, status: int) -> None:
        """The relay answers by itself."""
        key = str(status)
        self.answers[key] = self.answers.get(key, 0) + 1
