"""Faults of what is stored: checkpoints, disks, cached weights, files of a run folder, the user's images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from softdimo.build import PRODUCT
from softdimo.engine import checkpoint
from softdimo.files import read_weights
from tests import tiny
from tests.faults.bench import (
    ALONE,
    EVERY,
    Bench,
    Result,
    at,
    case,
    differences,
    earlier,
    filled,
    same_table,
    unchanged,
    unlike,
)

FILES = ("state.pt", "rank-0.pt", checkpoint.MARKER)


# Checkpoints


def damaged(bench: Bench, run: Path, versions: list[tuple[Path, bytes]]) -> Result:
    """Meet each damaged version of a file of the newest checkpoint; then delete that one, as the message says."""
    newest = checkpoint.complete(run / "checkpoints")[-1]
    arguments = bench.arguments("terms", run, "--resume")
    found: list[Result] = []
    for path, content in versions:
        whole = path.read_bytes()
        path.write_bytes(content)
        found.append(bench.meet(run, arguments))
        path.write_bytes(whole)
    path.write_bytes(content)
    last = bench.meet(run, arguments, mend=lambda: shutil.rmtree(newest))
    found.append(last)
    codes = {f.code for f in found}
    assert len(codes) == 1, codes
    return Result(last.code, last.message, all(f.intact for f in found), last.recovered, len(found) - 1)


@case("a checkpoint is cut off (each file, at every 1/16)", 3, "is (missing or was changed|damaged); delete")
def truncated(bench: Bench) -> Result:
    run = bench.copy("killed", "truncated")
    files = [checkpoint.complete(run / "checkpoints")[-1] / name for name in FILES]
    return damaged(bench, run, [(f, f.read_bytes()[: len(f.read_bytes()) * k // 16]) for f in files for k in range(16)])


@case("a byte of a checkpoint is flipped (each file: start, middle, end)", 3, "iter-00000005.*delete")
def flipped(bench: Bench) -> Result:
    run = bench.copy("killed", "flipped")
    versions = []
    for name in FILES:
        file = checkpoint.complete(run / "checkpoints")[-1] / name
        for place in (0, len(file.read_bytes()) // 2, len(file.read_bytes()) - 2):
            content = bytearray(file.read_bytes())
            content[place] ^= 0x10
            versions.append((file, bytes(content)))
    return damaged(bench, run, versions)


@case("killed while a checkpoint is written", 0, "resumed at 5", quick=True)
def half_written(bench: Bench) -> Result:
    run = bench.copy("killed", "half_written")
    assert list(run.rglob(".iter-00000006.partial"))
    code, said = bench.command(*bench.arguments("terms", run, "--resume"))
    clean = not list(run.rglob(".*.partial"))
    return Result(code, bench.plain(said), clean, not differences(run, bench.runs / "whole"))


# A disk that is full


def full(bench: Bench, name: str, start: str, recipe: str, path: str, time: int = 1) -> Result:
    """The disk fills up the moment that a file whose path holds `path` is made for the `time`-th time."""
    with bench.disk(bench.copy(start, name)) as run:
        table = recipe == "whole"
        if table:
            (run / "eval.json").unlink(missing_ok=True)
            (run / "search.json").unlink(missing_ok=True)
        found = bench.meet(
            run, (*bench.arguments(recipe, run), "--resume"), lambda: (run / "ballast").unlink(),
            at(path, filled(run), time), again=(*bench.arguments(recipe, run), "--resume"),
            same=(lambda: same_table(run, bench.runs / "table")) if table else None,
        )  # fmt: skip
    shutil.rmtree(run)
    return found


FULL = "cannot write .*No space left on device; what was saved before is untouched"


@case("the disk is full: checkpoint", 5, FULL, mounts=True, quick=True)
def full_checkpoint(bench: Bench) -> Result:
    return full(bench, "full_checkpoint", "killed", "terms", ".iter-00000006")


@case("the disk is full: samples", 5, FULL, mounts=True)
def full_samples(bench: Bench) -> Result:
    return full(bench, "full_samples", "killed", "terms", ".00000006.png")


@case("the disk is full: product", 5, FULL, mounts=True)
def full_product(bench: Bench) -> Result:
    return full(bench, "full_product", "killed", "terms", "/.weights.safetensors")


@case("the disk is full: log", 5, FULL, mounts=True)
def full_log(bench: Bench) -> Result:
    return full(bench, "full_log", "killed", "terms", ".log.csv")


@case("the disk is full: eval.json, second row", 5, FULL, mounts=True, quick=True)
def full_table(bench: Bench) -> Result:
    return full(bench, "full_table", "table", "whole", "/.eval.json", 2)


@case("the disk is full: search.json", 5, FULL, mounts=True)
def full_search(bench: Bench) -> Result:
    return full(bench, "full_search", "table", "whole", "/.search.json")


@case("the disk is full: report", 5, FULL, mounts=True)
def full_report(bench: Bench) -> Result:
    return full(bench, "full_report", "table", "whole", "/.report.html")


@case(
    "a quota ends in the middle of log.csv",
    5,
    r"cannot write .*log\.csv: File too large; what was saved before",
    quick=True,
)
def quota(bench: Bench) -> Result:
    run = bench.runs / "quota"
    size = f"os.path.getsize({str(run / 'log.csv')!r})"
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))"
    arguments = bench.arguments("terms", run)
    return bench.meet(run, arguments, lambda: None, at("/log.csv", limit, 3))


# A folder that is read-only


@case("the run folder is read-only", 5, "cannot write .*Read-only file system", mounts=True, quick=True)
def read_only(bench: Bench) -> Result:
    with bench.disk(bench.copy("killed", "read_only"), "ro") as run:
        found = bench.meet(run, bench.arguments("terms", run, "--resume"))
    run.rmdir()
    run.with_name("read_only.kept").rename(run)
    again = bench.command(*bench.arguments("terms", run, "--resume"))
    found.recovered = again[0] == 0 and not differences(run, bench.runs / "whole")
    return found


@case("an export goes to a read-only folder", 5, "cannot write .*Read-only file system", mounts=True)
def export_read_only(bench: Bench) -> Result:
    (bench.runs / "there").mkdir()
    table = bench.runs / "table"
    with bench.disk(bench.runs / "there", "ro") as there:
        found = bench.meet(table, ("export", table, "--out", there / "model"))
    found.recovered = bench.command("export", table, "--out", bench.root / "model")[0] == 0
    return found


# Cached weights, files of a run folder


def cached(bench: Bench, name: str, change: Callable[[bytes], bytes]) -> Result:
    """The cached teacher's weights are changed; they are deleted, as the message says, and made again."""
    run = bench.apart("killed", name)
    teacher = next((run.parent / "cache").glob("teacher-*")) / PRODUCT
    whole = {k: v.clone() for k, v in read_weights(teacher).items()}  # the file itself is what is read, and is cut off
    teacher.write_bytes(change(teacher.read_bytes()))
    return bench.meet(
        run, bench.arguments("terms", run, "--resume"), teacher.unlink,
        same=lambda: not unlike(read_weights(teacher), whole) and not differences(run, bench.runs / "whole"),
    )  # fmt: skip


@case(
    "cached weights are cut off",
    3,
    r"teacher-.*weights\.safetensors is not a readable safetensors file.*delete it",
    quick=True,
)
def cached_truncated(bench: Bench) -> Result:
    return cached(bench, "cached_truncated", lambda content: content[: len(content) // 2])


@case("a byte of cached weights is flipped", 3, r"teacher-.*weights\.safetensors was changed after it was.*delete it")
def cached_flipped(bench: Bench) -> Result:
    return cached(bench, "cached_flipped", lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


def file(bench: Bench, start: str, name: str, change: Callable[[bytes], bytes | None]) -> Result:
    """A file of a run folder is changed; then it is as it was."""
    run = bench.copy(start, f"{start}-{name}")
    path = run / name
    whole = path.read_bytes()
    path.write_bytes(change(whole) or b"")
    recipe = "terms" if start == "killed" else "whole"
    return bench.meet(
        run, bench.arguments(recipe, run, "--resume"), lambda: path.write_bytes(whole),
        same=None if start == "killed" else lambda: same_table(run, bench.runs / "table"),
    )  # fmt: skip


@case(
    "the product of a run is cut off", 3, r"product.weights\.safetensors is not a readable safetensors file.*delete it"
)
def product(bench: Bench) -> Result:
    run = bench.copy("table", "product")
    weights = run / PRODUCT
    weights.write_bytes(weights.read_bytes()[:-100])
    (run / "eval.json").unlink()
    return bench.meet(
        run, bench.arguments("whole", run), weights.unlink, same=lambda: same_table(run, bench.runs / "table")
    )


@case("the recipe in a run folder is cut off", 2, r"recipe\.yaml:\d+:\d+")
def resolved(bench: Bench) -> Result:
    run = bench.copy("table", "resolved")
    path = run / "recipe.yaml"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"ramp: constant") + len(b"ramp: con")])  # within a word
    return bench.meet(
        run, ("eval", run), lambda: path.write_bytes(whole), again=("eval", run),
        same=lambda: same_table(run, bench.runs / "table"),
    )  # fmt: skip


@case("lock.json is cut off", 3, r"lock\.json is damaged, so it does not say whose run this is", quick=True)
def lock(bench: Bench) -> Result:
    return file(bench, "killed", "lock.json", lambda content: content[:40])


@case("log.csv has lost its header", 3, r"log\.csv is damaged")
def log(bench: Bench) -> Result:
    return file(bench, "killed", "log.csv", lambda content: content.partition(b"\n")[2])


@case("eval.json is cut off", 3, r"eval\.json is damaged .*delete it to evaluate anew")
def table(bench: Bench) -> Result:
    return file(bench, "table", "eval.json", lambda content: content[: len(content) // 2])


# The user's images


def pictures(bench: Bench, name: str) -> Path:
    """A folder of pictures, recipes on them, a finished run of Di[M]O and a GAN and one that was killed."""
    home = tiny.write(bench.root / name).parent
    for recipe in home.glob("*.yaml"):
        text = recipe.read_text(encoding="utf-8")
        recipe.write_text(text.replace("{use: digits}", "{use: folder, path: pictures, size: 8, channels: 1}"))
    rng = np.random.default_rng(0)
    for label in ("ant", "bee"):
        (home / "pictures" / label).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(home / "pictures" / label / f"{i}.png")
    for run, prelude in (("done", ""), ("killed", at(".iter-00000003", "os.kill(os.getpid(), 9)"))):
        code, said = bench.command(*drawn(home, run), prelude=prelude)
        assert code == (-9 if prelude else 0), said
    return home


def drawn(home: Path, run: str, *more: str) -> tuple[object, ...]:
    """A run of `student.yaml`."""
    return ("run", home / "student.yaml", "--out", home / "runs" / run, *ALONE, *EVERY[1:], *more)


@case(
    "images are added: an unfinished run",
    3,
    "data that has changed since.*--fresh to replace it",
    quick=True,
)
def images_resume(bench: Bench) -> Result:
    home = pictures(bench, "images_resume")
    new = home / "pictures" / "ant" / "new.png"
    shutil.copy(home / "pictures" / "bee" / "0.png", new)
    run, done = home / "runs" / "killed", home / "runs" / "done"
    return bench.meet(run, drawn(home, "killed", "--resume"), new.unlink, same=lambda: not differences(run, done))


@case("images are added: a new run", 0, "tokenizer: 4 iterations")
def images_new(bench: Bench) -> Result:
    home = pictures(bench, "images_new")
    cache = home / "runs" / "cache"
    before = earlier(cache)
    shutil.copy(home / "pictures" / "bee" / "0.png", home / "pictures" / "ant" / "new.png")
    code, said = bench.command(*drawn(home, "new"))
    made = sorted(p.name.rpartition("-")[0] for p in cache.iterdir())
    return Result(code, bench.plain(said), unchanged(before, cache), made == ["teacher"] * 2 + ["tokenizer"] * 2)


@case("images are added: samples of a finished run", 3, "recipes that have changed since, or from other data.*restore")
def images_sample(bench: Bench) -> Result:
    home = pictures(bench, "images_sample")
    new = home / "pictures" / "ant" / "new.png"
    shutil.copy(home / "pictures" / "bee" / "0.png", new)
    command = ("sample", home / "runs" / "done", "--out", home / "drawn.png")
    return bench.meet(home / "runs" / "done", command, new.unlink, again=command, same=(home / "drawn.png").is_file)


@case("an image is cut off", 3, r"1 of 16 images cannot be decoded.*ant.2\.png")
def image_truncated(bench: Bench) -> Result:
    home = pictures(bench, "image_truncated")
    image = home / "pictures" / "ant" / "2.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:50])
    run = home / "runs" / "new"
    return bench.meet(
        run, drawn(home, "new"), lambda: image.write_bytes(whole),
        same=lambda: not differences(run, home / "runs" / "done"),
    )  # fmt: skip
