"""Nobody who reads, a full disk behind `>`, no home: an exit status and at most a line, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def shell(line, cwd, **env):
    "Run a line of the shell in which LESA stands for the command; the interpreter's folder may have spaces."
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, **env}
    line = line.replace("LESA", '"$PYTHON" -m lesa_nb.cli')
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_behind_the_answer_is_one_line(tmp_path):
    done = shell("LESA --help > /dev/full", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("lesa: ") and "No space left" in done.stderr, done.stderr


def test_closed_output_is_no_traceback(tmp_path):
    done = shell("LESA make-data imagenet drawn --train 1 --val 1 >&- 2>&- <&-", tmp_path)
    assert done.returncode == 0, done
    done = shell("LESA make-data imagenet drawn 2>&-", tmp_path)  # it is there
    assert done.returncode == 2, done


def test_a_command_needs_no_home(tmp_path):
    done = shell("LESA make-data imagenet drawn --train 1 --val 1", tmp_path, HOME="/proc/nowhere")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
