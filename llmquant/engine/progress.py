"""What a run tells while it works; the command line shows it, a library user may ignore it."""

from __future__ import annotations

from llmquant.engine.journal import LayerRecord


class Progress:
    """Receives the events of a run; this base class does nothing with them."""

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` steps begins."""

    def step(self, detail: str = "") -> None:
        """One step of the stage is done."""

    def layer(self, name: str, record: LayerRecord) -> None:
        """A layer was quantized."""

    def note(self, text: str) -> None:
        """Something the user should know."""
