"""Ctrl-C and SIGTERM at random moments of every command: it ends soon, and leaves nothing half done.

The seed of the moments is printed; LESA_FUZZ_SEED=N draws others.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from processes import patient, run
from test_cli_fuzz import made, small_lines, snapshot  # noqa: F401

from lesa_nb.data.verify import verify_image_folder
from lesa_nb.data.verify_coco import verify_coco

ROOT = Path(__file__).resolve().parent.parent
SEED = int(os.environ.get("LESA_FUZZ_SEED", 17))
ENDS = {0, 1, 130, 143}


def ask_to_end(words, cwd, number, moment, inside=""):
    """Send a command a signal after `moment` seconds; returns status, stderr and how long it took to end.

    inside: instead of after a time, when a file of this pattern is there.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lesa_nb.cli", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    begin = time.monotonic()
    while process.poll() is None and (
        not list(cwd.glob(inside)) if inside else time.monotonic() - begin < moment
    ):
        time.sleep(0.01)
    asked = time.monotonic()
    try:
        os.killpg(process.pid, number)  # as a terminal or a scheduler sends it: to all of them
    except ProcessLookupError:
        pass
    try:
        err = process.communicate(timeout=patient(60))[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, "did not end", time.monotonic() - asked
    return process.returncode, err, time.monotonic() - asked


def left_over(folder):
    "Names that only a command at work may have."
    return [str(path) for path in folder.rglob("*") if ".part" in path.name or path.suffix in (".tmp", ".lock")]


def check_end(words, made, cwd, number, moment):  # noqa: F811
    "Ask a command to end at a moment, and look at what it left."
    cwd.mkdir()
    (cwd / "notes.txt").write_text("kept")
    before, mine = snapshot(made), snapshot(cwd)
    status, err, took = ask_to_end(words, cwd, number, moment)
    what = f"{words[:2]}, {number.name} after {moment:.2f} s: status {status}, {took:.1f} s\n{err[-1500:]}"
    if status is not None and status < 0:
        status = 128 - status  # as a shell says it: Python itself was asked, when the work was done
    if moment > patient(1):  # before, it is still starting
        assert status in ENDS and "Traceback" not in err, what
    assert took < patient(10), what
    after = snapshot(cwd)
    assert snapshot(made) == before and all(after[name] == mine[name] for name in mine), what
    assert left_over(cwd) == [], what


def lines(made, tmp_path):  # noqa: F811
    "Command -> words of a line that takes a while."
    small = small_lines(made)
    small["train", "imagenet"]["--epochs"] = small["train", "coco"]["--epochs"] = ["500"]
    for line in (small["train", "imagenet"], small["train", "coco"]):
        del line["--stop-after"]
    small["demo",][""].remove("--quick")
    small["make-data", "imagenet"]["--train"] = small["make-data", "coco"]["--train"] = ["3000"]
    return {
        command: [*command, *line.get("", []), *(word for flag in line if flag for word in (flag, *line[flag]))]
        for command, line in small.items()
    }


@pytest.mark.parametrize(
    "command, number, moment",
    [
        (("demo",), signal.SIGTERM, 5.0),
        (("make-data", "imagenet"), signal.SIGTERM, 4.0),
        (("predict",), signal.SIGINT, 2.0),
    ],
)
def test_a_command_that_is_asked_to_end(command, number, moment, made, tmp_path):  # noqa: F811
    check_end(lines(made, tmp_path)[command], made, tmp_path / "work", number, patient(moment))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_when_the_work_is_done(number):
    "While Python tidies up: nothing is said, and the status is that of the work."
    code = f"""
import atexit, os, sys
from lesa_nb.cli.app import main
atexit.register(lambda: os.kill(os.getpid(), {int(number)}))
sys.argv[1:] = ["--help"]
sys.exit(main())
"""
    done = run("-c", code)
    assert done.returncode == 0 and done.stderr == "" and "usage" in done.stdout


def test_the_half_drawn_folder_goes_when_the_process_is_asked_to_end(tmp_path):
    "In the middle of the work for certain: there is something half made."
    words = ["make-data", "imagenet", "drawn", "--train", "100000"]
    status, err, took = ask_to_end(words, tmp_path, signal.SIGTERM, 0, inside="drawn.part/*/*/*.png")
    assert (status, err) == (143, "\nlesa: ended by SIGTERM\n") and took < patient(10)
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_is_interrupted_reads_no_further(made, tmp_path, monkeypatch):  # noqa: F811
    "Of many pictures only those that were being read: not all that wait in the queue."
    for name in ("one", "two"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(400):
            Image.new("RGB", (8, 8)).save(tmp_path / "set" / name / f"{i}.png")
    read = []

    def inspect(path, exif):
        read.append(path)
        if len(read) > 40:
            time.sleep(0.002)
        return []

    class Bar:
        def __init__(self, *args, **options):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, number):
            raise KeyboardInterrupt

    monkeypatch.setattr("lesa_nb.data.verify._inspect", inspect)
    monkeypatch.setattr("tqdm.tqdm", Bar)
    with pytest.raises(KeyboardInterrupt):
        verify_image_folder(tmp_path / "set", val_fraction=0.5, workers=2)
    assert len(read) < 200


@pytest.mark.parametrize("workers", [0, -1, 10**9])
def test_threads_that_cannot_be_are_refused_by_both_checks(workers, made):  # noqa: F811
    for check, folder in ((verify_image_folder, "pictures"), (verify_coco, "coco")):
        with pytest.raises(ValueError, match="workers must lie between 1 and 256"):
            check(made / folder, workers=workers, progress=False)


@pytest.mark.slow
def test_every_command_at_random_moments(made, tmp_path, capsys, record_property):  # noqa: F811
    chance, number = random.Random(SEED), 0
    with capsys.disabled():
        print(f"\nseed {SEED}")
    for command, words in lines(made, tmp_path).items():
        for ending in (signal.SIGINT, signal.SIGTERM, chance.choice([signal.SIGINT, signal.SIGTERM])):
            number += 1
            check_end(words, made, tmp_path / str(number), ending, patient(chance.uniform(0.5, 5)))
    record_property("interrupts:", number)
