"""What a run tells while it works; the command line shows it, a library user may ignore it."""

from __future__ import annotations


class Progress:
    """Receives the events of a run; this base class does nothing with them."""

    def stage(self, name: str, total: int, *, unit: str = "steps", work: float | None = None) -> None:
        """A stage begins.

        Args:
            name: what is done.
            total: number of steps.
            unit: what a step is, in the plural, such as "blocks".
            work: of all steps that are not done yet, in the unit of `step`; by default each is 1.
        """

    def step(self, detail: str = "", *, steps: int = 1, work: float | None = None) -> None:
        """One step of the stage is done, or several at once.

        Args:
            detail: what it was, such as a file.
            steps: how many.
            work: how much it was, compared with the others; 0 where an earlier run did it, by default 1 for each step.
        """

    def layer(self, name: str, loss: float) -> None:
        """A layer was quantized, with this relative error of its outputs or weights."""

    def loss(self, value: float) -> None:
        """The loss of the last steps of a stage that trains."""

    def note(self, text: str) -> None:
        """Something the user should know."""
