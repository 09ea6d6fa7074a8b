"""When rewards that nobody optimizes fall while the optimized ones rise, the student cheats: training ends there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from softdimo.spec import Positive, Settings


class Parting(Settings):
    """Ends training once a held-out reward has fallen below its best window and the optimized sum has risen since.

    Windows follow one another; the mean of one is compared with that of the window in which the held-out reward was
    highest. Both differences must be beyond what the spread of the turns' means explains.
    """

    window: Annotated[int, Field(ge=8)] = 200
    """The generator's turns in a window."""
    sigmas: Positive = 5.0
    """Standard errors that both differences must exceed. The best of many windows is high by luck too, so that 2 or 3
    would end trainings whose rewards stand still."""


class Watch:
    """Optimized sum and held-out rewards, turn by turn; `ending` says why training shall end, once it shall."""

    def __init__(self, settings: Parting) -> None:
        self.settings, self.ending = settings, ""
        self._turns: dict[str, list[float]] = {}
        self._best: dict[str, list[float]] = {}
        """Held-out reward -> its mean and standard error in its best window, and those of the optimized sum there."""

    def add(self, optimized: float, held_out: Mapping[str, float]) -> None:
        """One turn's means over the batch."""
        for name, value in {"": optimized, **held_out}.items():
            self._turns.setdefault(name, []).append(value)
        if len(self._turns[""]) == self.settings.window:
            self._judge()
            self._turns = {}

    def _judge(self) -> None:
        now = {name: _mean(values) for name, values in self._turns.items()}
        total, error = now.pop("")
        for name, (level, spread) in now.items():
            before = self._best.get(name)
            if before is None or level > before[0]:
                self._best[name] = [level, spread, total, error]
                continue
            fall = (before[0] - level) / max(_both(before[1], spread), 1e-12)
            rise = (total - before[2]) / max(_both(before[3], error), 1e-12)
            if min(fall, rise) > self.settings.sigmas and not self.ending:
                self.ending = (
                    f"the held-out reward `{name}` fell from {before[0]:.4g} to {level:.4g} while the optimized "
                    f"rewards rose from {before[2]:.4g} to {total:.4g} (means over {self.settings.window} turns): "
                    "they part, so the student pleases the rewards it is trained on and nobody else"
                )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and text."""
        return {"ending": self.ending, "turns": {k: list(v) for k, v in self._turns.items()}, "best": dict(self._best)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue."""
        self.ending = str(state["ending"])
        self._turns = {name: list(values) for name, values in state["turns"].items()}
        self._best = {name: list(values) for name, values in state["best"].items()}


def _mean(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    n = len(values)
    mean = sum(values) / n
    return mean, (sum((v - mean) ** 2 for v in values) / (n - 1) / n) ** 0.5


def _both(a: float, b: float) -> float:
    return float((a * a + b * b) ** 0.5)
