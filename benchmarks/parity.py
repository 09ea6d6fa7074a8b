"""Compare our networks and samplers with recordings of the public ones: `python benchmarks/parity.py DIR`.

Prints the largest error of every output of every recording in DIR, then `N passed, M failed`. Exit status 0 if there
are passes and no failures. Families without a check here are listed as skipped, which is no pass.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from parity_checks.registry import find, kind, run


def report(path: Path) -> bool | None:
    """Check one recording and print what was found: passed, failed, or (None) skipped."""
    check = find(path)
    if check is None:
        print(f"skipped {path.stem}: no check for {' '.join(kind(path))}")
        return None
    try:
        case = run(path, check)
    except Exception as error:  # a check that breaks has failed; the others go on
        print(f"FAILED  {path.stem}: {type(error).__name__}: {error}")
        return False
    passed = all(gap.ok for gap in case.gaps)
    print(f"{'passed' if passed else 'FAILED'}  {path.stem}")
    for gap in case.gaps:
        print(f"  {'   ' if gap.ok else '***'} {gap.output:<42} {gap.error:9.2e}  of {gap.tolerance:.0e}")
    return passed


def main(arguments: list[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dir", type=Path, help="folder of recordings")
    folder: Path = parser.parse_args(arguments).dir
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder")
    results = [report(path) for path in sorted(folder.glob("*.json"))]
    passed, failed = results.count(True), results.count(False)
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
