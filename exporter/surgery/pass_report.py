"""What a pass says it did."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PassReport:
    """The sites that one pass changed; none: the graph is as it was."""

    name: str
    changed: list[str] = field(default_factory=list)
