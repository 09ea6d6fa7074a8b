"""What stands on a sample sheet, and that nothing is decoded for it twice or in vain."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from PIL import Image

from softdimo import recipe as recipes
from softdimo.build import Components
from softdimo.runs.lineage import cached
from softdimo.runs.sheets import COLUMNS, FEW, Sheets
from tests.tiny import finished


@pytest.mark.parametrize("columns", [FEW, COLUMNS])
def test_a_row_is_decoded_once_and_the_teachers_only_at_the_first_look(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(tmp_path)
    loaded = recipes.load(tmp_path / "student.yaml", ["train.sampler={use: random_order, steps: 3}"])
    parts = Components(loaded.recipe, "cpu", cached(run, smoke=False))
    tokenizer, student = parts.require_tokenizer(), parts.context().copy_teacher()
    decode, seen = type(tokenizer).pixels, []  # type: ignore[attr-defined]
    monkeypatch.setattr(tokenizer, "pixels", lambda z: seen.append(len(z)) or decode(tokenizer, z))
    sheets = Sheets(parts, tmp_path / "samples", columns=columns)
    first, second = (sheets.write(done, "student", student, nullcontext) for done in (1, 2))
    assert seen == [columns] * (4 + 3)
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as sheet:
        heads = [parts.data.classes[i] for i in parts.data.conditions(columns).labels]
        assert sheet.info["Description"] == f"columns: {', '.join(heads)}; rows: teacher, student, EMA, EMA, soft"
