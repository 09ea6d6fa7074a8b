"""The log of a run: a CSV that survives a resume, optionally TensorBoard."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softdimo.errors import CheckpointError
from softdimo.files import write_text, writing
from softdimo.kinds import Logs
from softdimo.math.ranks import mean_over_ranks


class Log:
    """Averages scalars between rows and over ranks; one CSV row per `every` iterations, written by the `first` rank.

    New columns may appear at any time, on all ranks. `device` is that of the ranks' exchange.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        tensorboard: bool = False,
        first: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self.path, self.every, self.first, self.device = folder / "log.csv", every, first, device
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self._columns = 0
        self._board: Any = None
        if tensorboard:
            from lightning_fabric.loggers.tensorboard import TensorBoardLogger

            self._board = TensorBoardLogger(folder, name="tensorboard", version="")

    def resume(self, iteration: int) -> None:
        """Keep the rows before `iteration` and drop the rest (also half of a row): they will be written again."""
        if not self.path.is_file():
            return
        try:
            text = self.path.read_bytes().decode("utf-8")
            reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""), strict=True)
            if (reader.fieldnames or ["iteration"])[0] != "iteration":
                raise ValueError("its first column is not `iteration`")
            for row in reader:
                values = {k: float(v) for k, v in row.items() if v}
                if values.get("iteration", iteration) < iteration:
                    self.rows.append(values)
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise CheckpointError(
                f"{self.path} is damaged ({error}); mend it, or delete it to go on without the rows so far"
            ) from error
        self._rewrite()

    def add(self, iteration: int, logs: Logs) -> dict[str, float] | None:
        """Gather one iteration; returns the averaged row when one is due."""
        for name, value in logs.items():
            self._sums[name] = self._sums.get(name, 0.0) + (value.detach() if isinstance(value, Tensor) else value)
            self._counts[name] = self._counts.get(name, 0) + 1
        if (iteration + 1) % self.every:
            return None
        means = torch.tensor([float(v) / self._counts[k] for k, v in self._sums.items()], dtype=torch.float64)
        means = mean_over_ranks(means.to(self.device))
        row = {"iteration": float(iteration)} | dict(zip(self._sums, means.tolist(), strict=True))
        self._sums, self._counts = {}, {}
        self.rows.append(row)
        if not self.first:
            return row
        if len({k for r in self.rows for k in r}) > self._columns:
            self._rewrite()
        else:
            with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
                self._writer(file).writerow(self._plain(row))
        if self._board is not None:
            with writing(self.path.parent / "tensorboard"):
                self._board.log_metrics({k: v for k, v in row.items() if k != "iteration"}, step=iteration)
        return row

    def state_dict(self) -> dict[str, Any]:
        """Sums of the row under way."""
        return {"sums": {k: float(v) for k, v in self._sums.items()}, "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the row under way."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        names = list(dict.fromkeys(k for r in self.rows for k in r))
        return csv.DictWriter(file, names)

    @staticmethod
    def _plain(row: dict[str, float]) -> dict[str, str]:
        return {k: str(int(v)) if k == "iteration" else repr(v) for k, v in row.items()}

    def _rewrite(self) -> None:
        buffer = io.StringIO(newline="")
        writer = self._writer(buffer)
        writer.writeheader()
        for row in self.rows:
            writer.writerow(self._plain(row))
        self._columns = len(writer.fieldnames)
        write_text(self.path, buffer.getvalue())
