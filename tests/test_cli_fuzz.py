"""Command lines with odd values: whatever is asked, an answer of a few lines, and nothing half done or overwritten.

The seed of the lines is printed; LESA_FUZZ_SEED=N draws others.
"""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import stat
import time
import traceback

import pytest
import torch
from command_lines import commands, options, random_line
from PIL import Image
from processes import patient

from lesa_nb.cli.app import main
from lesa_nb.data.drawn import make_image_folder
from lesa_nb.data.drawn_coco import make_coco
from lesa_nb.models.registry import build_classifier, build_detector
from lesa_nb.weights.files import save_weights

SEED = int(os.environ.get("LESA_FUZZ_SEED", 17))
SECONDS = 120  # that a line may take
ODD = "odd 'name' \"$HOME\" été 写真"
BAR = re.compile(r"\[\d\d:\d\d[,<]")


class Hangs(BaseException):
    "A line that does not end."


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "What the lines read: pictures, folders of both kinds and weights."
    home = tmp_path_factory.mktemp("made") / ODD
    home.mkdir()
    torch.manual_seed(0)
    net = dict(network="small", term="lesa", position="factored", image_size=32)
    classes = ["blue", "green", "red"]
    save_weights(
        build_classifier(num_classes=3, **net), home / "sorts.safetensors", arch="classifier", classes=classes, **net
    )
    net = dict(model="mask_rcnn", network="small", num_classes=3, image_size=40)
    found = dict(arch="detector", classes=["disc", "square", "triangle"], category_ids=[2, 17, 90])
    save_weights(build_detector(**net), home / "finds.safetensors", net=net, **found)
    (home / "letter.pth").write_text("dear")
    Image.new("RGB", (40, 32), "red").save(home / "photo.png")
    make_image_folder(home / "pictures", train=2, val=1, size=32)
    make_coco(home / "coco", train=3, val=2, test=2, size=64)
    (home / "empty").mkdir()
    (home / "loop").symlink_to(home / "loop")
    (home / "nowhere").symlink_to(home / "gone")
    return home


def small_lines(made):
    "Command -> flag -> words: a line that makes sense and ends soon."
    run = {"--network": ["small"], "--epochs": ["1"], "--stop-after": ["1"], "--workers": ["0"], "--device": ["cpu"]}
    run |= {"--image-size": ["32"], "--no-tensorboard": [], "--out": ["run"]}
    score = {"--workers": ["0"], "--device": ["cpu"]}
    photo, sorts, finds = ([str(made / name)] for name in ("photo.png", "sorts.safetensors", "finds.safetensors"))
    pictures, coco = [str(made / "pictures")], [str(made / "coco")]
    return {
        ("check",): {},
        ("demo",): {"": ["--quick"], "--out": ["demo"]},  # never left out: a whole one takes minutes
        ("exercise",): {"": ["08"], "--out": ["again.ipynb"]},
        ("explain",): {"": photo, "--weights": sorts, "--size": ["32"]},
        ("explore",): {"": photo, "--weights": sorts, "--size": ["32"]},
        ("export",): {"--weights": sorts, "--out": ["net.pt2"]},
        ("export-testdev",): {"--data": coco, "--weights": finds, "--out": ["found.json"], **score},
        ("predict",): {"": photo, "--weights": finds, "--device": ["cpu"]},
        ("train", "imagenet"): {"--data": pictures, **run, "--position": ["factored"]},
        ("train", "coco"): {"--data": coco, **run, "--image-size": ["40"]},
        ("eval", "imagenet"): {"--data": pictures, "--weights": sorts, **score},
        ("eval", "coco"): {"--data": coco, "--weights": finds, **score},
        ("verify-data", "imagenet"): {"": pictures},
        ("verify-data", "coco"): {"": coco},
        ("make-data", "imagenet"): {"": ["drawn"], "--train": ["2"], "--val": ["1"], "--size": ["32"]},
        ("make-data", "coco"): {"": ["drawn"], "--train": ["2"], "--val": ["1"], "--test": ["1"], "--size": ["64"]},
    }


def places_of(made):
    "Paths that an option may be given."
    names = ["photo.png", "sorts.safetensors", "finds.safetensors", "letter.pth", "pictures", "coco", "empty", "gone"]
    found = [str(made / name) for name in (*names, "loop", "nowhere", "gone/deeper", "photo.png/inside")]
    found += ["notes.txt", "notes", "notes/", ".", "..", "~", "/proc/nowhere", "/proc/nowhere/x.json", "/dev/null/x"]
    return [*found, "new", "new/deep er", "new.json", "new.png", "new.html", "new.onnx", "x" * 300, "a\nb", "-x"]


def snapshot(folder):
    "Every file with what would show that it was written to."
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = stat.S_ISDIR(status.st_mode) or (status.st_size, status.st_mtime_ns)
        found[str(path.relative_to(folder))] = status.st_mode, content
    return found


@contextlib.contextmanager
def largest_file(size):
    "A disk that is full after `size` bytes of a file; None: one with room."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def at_most(seconds):
    "Raises Hangs in what takes longer."
    def ring(*_):
        raise Hangs(f"did not end within {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def what_is_wrong(words, made, work, capsys, *, full=None, inputs=None):
    "What one command line did that no line may do; empty if it is fine. Also its status and what it said."
    work.mkdir()
    (work / "notes.txt").write_text("kept")
    (work / "notes").mkdir()
    (work / "notes" / "a.txt").write_text("kept, too")
    inputs, before = inputs or snapshot(made), snapshot(work)
    os.chdir(work)
    capsys.readouterr()
    try:
        with at_most(int(patient(SECONDS))), largest_file(full):
            status = main(list(words))
    except (Exception, SystemExit, Hangs) as error:
        frames = traceback.format_exception(error)
        return [f"raises {type(error).__name__}: {error}", "".join(frames[-4:])], None, ""
    out, err = capsys.readouterr()
    wrong = []
    said = [line for line in re.split(r"[\r\n]+", err) if line.strip() and not BAR.search(line)]
    if status not in (0, 1, 2):
        wrong.append(f"status {status}")
    if len(said) > 3 or "Traceback" in err + out:
        wrong.append(f"says {len(said)} lines")
    if status == 2 and (len(said) != 1 or not said[0].startswith("lesa")):
        wrong.append("a refusal is one sentence")
    if status == 1 and not said and not out.strip():
        wrong.append("failed without a word")
    now, after = snapshot(made), snapshot(work)
    if any(now.get(name) != status for name, status in inputs.items()):
        wrong.append("changed what it reads")
    added = [made / name for name in now if name not in inputs]
    for path in reversed(added):  # it was asked to write there
        path.rmdir() if path.is_dir() else path.unlink()
    lost = [name for name in before if after.get(name) != before[name] and name not in [*words, "."]]
    lost = [name for name in lost if not any(word.endswith(f"={name}") for word in words)]
    if lost:
        wrong.append(f"overwrote {lost}")
    new = [name for name in after if name not in before] + [str(path) for path in added]
    if status == 2 and new:
        wrong.append(f"refused, but left {new}")
    if half := [name for name in new if ".part" in name or name.endswith((".tmp", ".lock"))]:
        wrong.append(f"left half-made {half}")
    return wrong, status, err


def run_lines(number, seed, made, tmp_path, capsys, seconds=None):
    "So many random lines; returns those that did what no line may do, and counts of status."
    chance, lines, found, count = random.Random(seed), small_lines(made), [], {}
    known, places, inputs = commands(), places_of(made), snapshot(made)
    environment = dict(os.environ)
    kept = shutil.copytree(made, tmp_path / "kept", symlinks=True)
    for i in range(number):
        command = chance.choice([name for name in known if name != ("check",)])
        if command == ("demo",) and chance.random() < 0.7:  # where nothing is refused, it takes seconds
            command = "train", "coco"
        words = [*command, *random_line(lines[command], known[command], places, chance)]
        full = chance.choice([None] * 9 + [3000])
        if chance.random() < 0.1:
            os.environ |= dict(HOME="/proc/nowhere", XDG_CACHE_HOME="/proc/nowhere", COLUMNS="1")
        begin, work = time.monotonic(), tmp_path / f"{i}" / ODD
        work.parent.mkdir()
        try:
            wrong, status, err = what_is_wrong(words, made, work, capsys, full=full, inputs=inputs)
        finally:
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(tmp_path)
        took = time.monotonic() - begin
        if "changed what it reads" in wrong:  # said once; the lines after it read what there was
            shutil.rmtree(made)
            shutil.copytree(kept, made, symlinks=True)
            inputs = snapshot(made)
        count[status] = count.get(status, 0) + 1
        if log := os.environ.get("LESA_FUZZ_LOG"):
            with open(log, "a", errors="backslashreplace") as file:
                print(i, f"{took:.1f} s", status, [word[:80] for word in words], wrong, err[:300], file=file)
        if wrong:
            short = [word if len(word) < 100 else f"{word[:20]}...({len(word)})" for word in words]
            found.append(f"line {i}: {short}{', full disk' if full else ''}\n  {wrong}\n  {err[-1500:]}")
        shutil.rmtree(tmp_path / f"{i}", ignore_errors=True)
    return found, count


def test_the_options_are_those_of_the_help(capsys):
    "What is fuzzed is all there is: a new option cannot be forgotten."
    for command, function in commands().items():
        assert main([*command, "--help"]) == 0
        said = set(re.findall(r"(?m)^[│ ]*(?:-h, )?(--[a-z][a-z0-9-]*)", capsys.readouterr().out)) - {"--help"}
        assert said == {option.flag for option in options(function) if option.flag}, command


def test_the_small_lines_work(made, tmp_path, capsys):
    "Every line that the odd values are put into is one that ends with 0."
    lines = small_lines(made)
    assert set(lines) == set(commands())
    for i, (command, line) in enumerate(lines.items()):
        if command in (("demo",), ("export",)):
            continue  # seconds each; tested elsewhere
        words = [*command, *line.get("", []), *(w for flag in line if flag for w in (flag, *line[flag]))]
        wrong, status, err = what_is_wrong(words, made, tmp_path / str(i), capsys)
        assert not wrong and status == 0, (words, wrong, status, err)


def no_line_is_wrong(number, seed, made, tmp_path, capsys, record_property):
    found, count = run_lines(number, seed, made, tmp_path, capsys)
    with capsys.disabled():
        print(f"\nseed {seed}: {json.dumps({str(status): n for status, n in count.items()})}")
    record_property(f"lines of seed {seed}:", number)
    assert not found, f"seed {seed}: {len(found)} lines\n" + "\n".join(found[:20])


def test_random_lines(made, tmp_path, capsys, record_property):
    "LESA_FUZZ_NUMBER=N draws so many."
    no_line_is_wrong(int(os.environ.get("LESA_FUZZ_NUMBER", 60)), SEED, made, tmp_path, capsys, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 5))
def test_two_thousand_random_lines(part, made, tmp_path, capsys, record_property):
    no_line_is_wrong(500, SEED + part, made, tmp_path, capsys, record_property)
