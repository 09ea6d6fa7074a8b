"""What only a process of its own shows: start-up, imports, pipes, exit codes."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

BUDGET = 0.5
"""Seconds for commands that compute nothing."""


def softdimo(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "softdimo.cli.main", *arguments], capture_output=True, text=True, timeout=120, **options
    )


@pytest.mark.parametrize("arguments", [["--help"], ["plugins", "list"], ["run", "--help"]])
def test_light_commands_import_nothing_heavy(arguments):
    code = (
        "import sys; from softdimo.cli.main import main; code = main(sys.argv[1:]);"
        "print([m for m in ('torch', 'numpy', 'lightning_fabric', 'softdimo_plugins') if m in sys.modules],"
        "file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["plugins", "list"]])
def test_light_commands_take_less_than_half_a_second(arguments):
    """Processor time, the median of five: the wall clock of a busy machine measures the machine."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert softdimo(*arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(seconds) < BUDGET, seconds


def test_exit_code_and_no_traceback(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_bytes(b"\xff\xfe")
    done = softdimo("run", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {file}:1:1 not UTF-8: the byte 0xff; save the file as UTF-8\n"


def test_messages_survive_a_terminal_without_unicode(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("títle: é\n", encoding="utf-8")
    done = softdimo("run", str(file), env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 2
    assert "did you mean `title`?" in done.stderr


@pytest.mark.parametrize("arguments", [["plugins", "list"], ["plugins", "--help"]])
def test_a_closed_pipe_is_quiet(arguments):
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "softdimo.cli.main", *arguments], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    os.close(read)
    assert process.communicate(timeout=120)[1] == ""


def test_the_console_script():
    script = Path(sys.executable).with_name("softdimo")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("softdimo ")
