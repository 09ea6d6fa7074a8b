import csv
from pathlib import Path

import pytest

from softdimo.engine.log import Log


def filled(folder: Path, upto: int = 6) -> Log:
    log = Log(folder, 2)
    for i in range(upto):
        log.add(i, {"loss": i / 7} | ({"late": float(i)} if i >= 4 else {}))
    return log


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_are_means_and_new_columns_may_come(tmp_path: Path) -> None:
    filled(tmp_path)
    assert [row["iteration"] for row in rows(tmp_path)] == ["1", "3", "5"]
    assert [float(row["loss"]) for row in rows(tmp_path)] == pytest.approx([0.5 / 7, 2.5 / 7, 4.5 / 7])
    assert [row["late"] for row in rows(tmp_path)] == ["", "", "4.5"]


@pytest.mark.parametrize("torn", [1, 5, 12])
def test_half_of_a_row_is_dropped_with_those_that_will_be_written_again(tmp_path: Path, torn: int) -> None:
    filled(tmp_path)
    whole = (tmp_path / "log.csv").read_bytes()
    (tmp_path / "log.csv").write_bytes(whole + b"12345678,0.123456789"[:torn])
    log = Log(tmp_path, 2)
    log.resume(4)
    assert [row["iteration"] for row in rows(tmp_path)] == ["1", "3"]
    for i in (4, 5):
        log.add(i, {"loss": i / 7, "late": float(i)})
    assert (tmp_path / "log.csv").read_bytes() == whole


def test_a_row_under_way_goes_on(tmp_path: Path) -> None:
    filled(tmp_path / "whole")
    log = filled(tmp_path / "part", 3)
    again = Log(tmp_path / "part", 2)
    again.resume(3)
    again.load_state_dict(log.state_dict())
    for i in range(3, 6):
        again.add(i, {"loss": i / 7} | ({"late": float(i)} if i >= 4 else {}))
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")
