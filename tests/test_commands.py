"""The commands called as functions: what they add to the library's functions, and the way from a folder to scores."""

import json
import os
import resource
import subprocess
import sys
import types
from dataclasses import replace
from math import nan
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import run_ranks
from small_runs import RECIPE, make_task

from lesa_nb.cli import _common, check, export, see
from lesa_nb.cli._common import UsageError
from lesa_nb.cli.app import main
from lesa_nb.cli.data import make_coco_folder, make_imagenet, verify_coco_folder, verify_imagenet
from lesa_nb.cli.eval import eval_coco, eval_imagenet
from lesa_nb.cli.predict import predict_images
from lesa_nb.cli.train import RunOptions, show_progress, train_coco, train_imagenet
from lesa_nb.engine.log import read_log
from lesa_nb.engine.recipe import Recipe

AT_ONCE = _common.ScoreOptions(batch_size=4, workers=0)
ROOT = Path(__file__).resolve().parent.parent


# What commands share


def test_numbers_below_one_are_refused_by_their_flag():
    with pytest.raises(UsageError, match="--batch-size must be at least 1, got 0"):
        _common.positive(epochs=None, batch_size=0)
    assert _common.is_main_process()


@pytest.mark.parametrize("numbers", [dict(workers=-1), dict(workers=100_000), dict(seed=2**63), dict(minutes=nan)])
def test_numbers_that_cannot_be_are_refused_before_a_run_begins(numbers):
    (name,) = numbers
    with pytest.raises(UsageError, match=f"--{name} must"):
        RunOptions(**numbers)


def test_only_the_main_process_talks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    _common.echo("hello")
    assert not _common.is_main_process() and capsys.readouterr().out == ""


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(12), raising=False)
    assert _common.worker_count(3) == 3 and _common.worker_count(None) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert _common.worker_count(None) == 2


def test_answers_never_replace_what_they_are_about(tmp_path, monkeypatch):
    picture, weights = tmp_path / "photo.jpg", tmp_path / "best.safetensors"
    for file in (picture, weights):
        file.write_bytes(b"precious")
        with pytest.raises(UsageError, match="would overwrite what is read"):
            predict_images((str(picture),), weights, json=file)
    for score in (eval_imagenet, eval_coco):
        with pytest.raises(UsageError, match="would overwrite what is read"):
            score(tmp_path, weights=weights, out=weights)
        with pytest.raises(UsageError, match="is a folder"):
            score(tmp_path, weights=weights, out=tmp_path)
        with pytest.raises(FileNotFoundError, match="its folder does not exist"):
            score(tmp_path, weights=weights, out=tmp_path / "gone" / "scores.json")
        with pytest.raises(UsageError, match="photo.jpg: is there already, and no .json file; it stays"):
            score(tmp_path, weights=weights, out=picture)
    with pytest.raises(UsageError, match="is there already, and no .json file; it stays"):
        predict_images((str(weights),), tmp_path / "other.pth", json=picture)
    assert picture.read_bytes() == weights.read_bytes() == b"precious"
    monkeypatch.setattr("os.access", lambda *args: False)
    with pytest.raises(PermissionError, match="may not be written to"):
        _common.check_new_file("--out", tmp_path / "scores.json")


def test_the_file_for_cocos_server_never_replaces_what_it_is_made_from(tmp_path):
    make_coco_folder(tmp_path / "coco", train=1, val=1, test=1, size=64)
    weights, notes = tmp_path / "best.safetensors", tmp_path / "notes.txt"
    truth = tmp_path / "coco" / "annotations" / "image_info_test-dev2017.json"
    kept = {file: file.write_bytes(b"precious") and b"precious" for file in (weights, notes)}
    kept[truth] = truth.read_bytes()
    for out in kept:
        with pytest.raises(UsageError, match="would overwrite what is read|is there already, and no .json file"):
            export.testdev_file(tmp_path / "coco", weights, out=out)
    val = truth.with_name("instances_val2017.json")
    with pytest.raises(UsageError, match="would overwrite what is read"):
        eval_coco(tmp_path / "coco", weights=weights, out=val)
    assert all(file.read_bytes() == content for file, content in kept.items())


@pytest.mark.parametrize("command, suffix", [("explain", ".png"), ("explore", ".html")])
def test_a_picture_of_the_maps_never_replaces_the_weights(command, suffix, tmp_path, capsys):
    weights = tmp_path / f"weights{suffix}"
    weights.write_bytes(b"precious")
    Image.new("RGB", (40, 32)).save(tmp_path / "photo.jpg")
    words = [command, str(tmp_path / "photo.jpg"), "--weights", str(weights), "--out", str(weights)]
    assert main(words) == 2 and "would overwrite the weights" in capsys.readouterr().err
    assert weights.read_bytes() == b"precious"


def test_a_link_that_leads_to_itself_is_no_file_to_write_to(tmp_path):
    (tmp_path / "loop.json").symlink_to("loop.json")
    with pytest.raises(UsageError, match="--out .*loop.json: a link that leads to itself"):
        _common.check_new_file("--out", tmp_path / "loop.json", replaces=".json")
    (tmp_path / "new.json").symlink_to("not yet.json")
    _common.check_new_file("--out", tmp_path / "new.json", replaces=".json")


def test_a_picture_larger_than_any_machine_is_refused(tmp_path):
    for words in (["train", "imagenet"], ["train", "coco"], ["eval", "imagenet", "--weights", str(tmp_path / "w")]):
        assert main([*words, "--data", str(tmp_path), "--image-size", "1000000"]) == 2
    with pytest.raises(UsageError, match="--image-size must be at most 4096"):
        _common.check_image_size(1_000_000)


@pytest.mark.parametrize("draw", [make_imagenet, make_coco_folder])
def test_drawn_folders_refuse_a_negative_seed(draw, tmp_path):
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        draw(tmp_path / "new", seed=-1)
    assert not list(tmp_path.iterdir())


def test_predictions_drawn_into_a_file_are_refused(monkeypatch, tmp_path):
    from lesa_nb.weights import load

    monkeypatch.setattr(load, "load", lambda path: types.SimpleNamespace(kind="detector"))
    (tmp_path / "file").touch()
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UsageError, match="--out wants the name of a folder"):
        predict_images((str(tmp_path / "photo.jpg"),), tmp_path / "w", out=tmp_path / "file")


def test_scores_that_are_nan_are_null_in_json(tmp_path):
    _common.write_json(tmp_path / "scores.json", {"AP": float("nan"), "AR": 0.5}, "the scores")
    assert json.loads((tmp_path / "scores.json").read_text()) == {"AP": None, "AR": 0.5}


def test_a_run_is_shown_while_it_goes():
    lines = []
    start = dict(kind="start", epoch=0, step=0, epochs=1, steps=1, resumed=False, samples=4, valid=2)
    events = [
        {**start, "parameters": 9, "processes": 1, "device": "cpu"},
        dict(kind="step", epoch=0, step=1, loss=1.0, lr=0.1, images_per_second=7.0, waiting=0.5),
        dict(kind="valid", epoch=0, step=1, scores=dict(top1=50.0), best=True),
    ]
    assert show_progress(iter(events), speak=lines.append) == events[-1]
    assert "4 images to train on" in lines[0] and lines[1] == "epoch 1/1: top1 50.00  (best so far)"
    events[0] = {**events[0], "resumed": True, "epoch": 0, "step": 1, "steps": 2}
    show_progress(iter(events), speak=lines.append)
    assert lines[2].startswith("resumed in epoch 1 after step 1 of 2: 4 images")
    events[0] = {**events[0], "epoch": 1, "step": 0}
    show_progress(iter(events[:1] + events[2:]), speak=lines.append)
    assert lines[4].startswith("finished already: 4 images")


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")])
def test_a_run_that_nobody_hears_any_more_is_saved(error, tmp_path):
    "`| tee log` whose terminal has gone, `> log` on a full disk: the work since the last checkpoint was lost."
    from lesa_nb.engine._checkpoint import read_checkpoint
    from lesa_nb.engine.run import fit
    from lesa_nb.engine.signals import Stop, Stopped

    lines = []

    def speak(line):
        if lines:
            raise error
        lines.append(line)

    def events(stop):
        for event in fit(make_task(replace(RECIPE, ema=0.0)), tmp_path, device="cpu", stop=stop):
            yield dict(event, scores={}) | dict.fromkeys(["skipped"], int(event["step"] >= 2)) | dict(loss_scale=1.0)

    with Stop() as stop, pytest.raises(Stopped, match="could not be written .*stopped in epoch 1 after step 2 of"):
        show_progress(events(stop), speak=speak, stop=stop)
    assert read_checkpoint(tmp_path / "last.pt")["step"] == 2 and len(lines) == 1
    with pytest.raises(OSError):  # who cannot ask a run to end gets the error itself
        show_progress(fit(make_task(), tmp_path / "other", device="cpu"), speak=speak)


def test_what_a_gpu_cannot_do_and_steps_left_out_are_said():
    lines = []
    start = dict(kind="start", epoch=0, step=0, epochs=1, steps=3, resumed=False, samples=4, valid=2, parameters=9)
    step = dict(kind="step", epoch=0, loss=1.0, lr=0.1, images_per_second=7.0, waiting=0.5)
    events = [
        dict(start, processes=1, device="cuda:0", not_deterministic=["deform_conv2d", "roi_align"]),
        dict(step, step=1, skipped=0, loss_scale=65536.0),
        dict(step, step=2, skipped=1, loss_scale=32768.0),
        dict(step, step=3, skipped=1, loss_scale=32768.0),
    ]
    show_progress(iter(events), speak=lines.append)
    assert len(lines) == 3 and "deform_conv2d, roi_align have no deterministic form on a GPU" in lines[1]
    assert lines[2].startswith("epoch 1, step 2: a gradient overflowed in float16")
    assert "halved to 32,768; left out so far: 1" in lines[2]
    lines.clear()
    show_progress(iter([dict(events[0], device="cpu")]), speak=lines.append)
    assert len(lines) == 1  # on a CPU they are deterministic


def test_options_of_a_run_change_the_recipe():
    recipe = Recipe("try", epochs=3, batch_size=8, lr=0.1, lr_batch=8)
    assert RunOptions().changed(recipe) == recipe
    changed = RunOptions(epochs=5, lr=0.2).changed(recipe, ema=0.9, clip=None)
    assert changed == Recipe("try", epochs=5, batch_size=8, lr=0.2, lr_batch=8, ema=0.9)
    for wrong in (dict(epochs=0), dict(seed=-1), dict(workers=-1), dict(minutes=-1.0), dict(stop_after=0)):
        with pytest.raises(UsageError):
            RunOptions(**wrong)


# lesa check


def test_a_torchvision_made_for_another_torch_is_named(monkeypatch, capsys):
    assert check.check_machine() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "ready"
    for name in ("python", "torch", "torchvision", "CPU", "GPU"):
        assert any(line.split()[0] == name for line in lines if line), name

    def broken_nms(*args):
        raise RuntimeError("operator torchvision::nms does not exist")

    stand_in = types.SimpleNamespace(ops=types.SimpleNamespace(nms=broken_nms))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", stand_in)
        assert check.check_machine() == 1
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "to be mended: torch + torchvision"
    assert "nms does not exist; install them together: pip install --force-reinstall torch torchvision" in said
    assert check.check_machine() == 0


def test_versions_are_compared_by_their_first_numbers():
    assert [check._numbers(v) for v in ("2.15.0+cpu", "3.10.0rc1", "7")] == [(2, 15), (3, 10), (7,)]


@pytest.mark.parametrize("is_installed", [True, False])
def test_what_is_asked_for_stands_in_settings_once(is_installed, monkeypatch):
    def requires(name):
        if not is_installed:
            raise check.PackageNotFoundError(name)
        return ["torch>=2.10", "tyro", 'scikit-learn; extra == "demo"', "nbdev<3,>=2.4.14; extra == 'dev'"]

    monkeypatch.setattr(check, "requires", requires)
    found = {need.name: need for need in check._requirements()}
    assert found["torch"] == ("torch", "2.10", "") and found["tyro"] == ("tyro", "", "")
    assert found["scikit-learn"] == ("scikit-learn", "", "demo") and found["nbdev"] == ("nbdev", "2.4.14", "dev")
    if not is_installed:
        assert set(check._PURPOSES) <= set(found)  # each optional package stands in settings.ini


# The whole way, with the functions behind the commands

SMALL = dict(network="small", image_size=64, position="factored", augment="gentle")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A folder that was drawn and checked, a network trained on it, asked to end after an epoch, and continued."
    home = tmp_path_factory.mktemp("commands")
    data, out = home / "pictures", home / "run"
    assert make_imagenet(data, task="corner", train=32, val=9) == 0
    assert verify_imagenet(data) == 0
    run = RunOptions(epochs=2, batch_size=16, lr=0.4, workers=0, no_tensorboard=True)
    assert train_imagenet(data, replace(run, stop_after=1), out, **SMALL) == 0
    with pytest.raises(ValueError, match="holds a run already"):
        train_imagenet(data, run, out, **SMALL)
    assert train_imagenet(data, replace(run, resume="auto"), out, **SMALL) == 0
    return data, out


def test_a_run_ends_and_goes_on(trained):
    data, out = trained
    assert [e["epoch"] for e in read_log(out) if e["kind"] == "valid"] == [0, 1]
    files = {"best.json", "best.safetensors", "curves.png", "last.json", "last.pt", "last.safetensors", "log.jsonl"}
    assert files <= {p.name for p in out.iterdir()} <= files | {"lock"}


def test_eval_gives_what_the_run_reported(trained, tmp_path):
    data, out = trained
    assert eval_imagenet(data, out / "last.safetensors", options=AT_ONCE, out=tmp_path / "scores.json") == 0
    again = json.loads((tmp_path / "scores.json").read_text())
    reported = json.loads((out / "last.json").read_text())["scores"]
    assert [again["top1"], again["loss"]] == pytest.approx([reported["top1"], reported["loss"]], abs=1e-4)


def test_an_exported_program_takes_any_size(trained, tmp_path):
    _, out = trained
    assert export.export_network(out / "best.safetensors", tmp_path / "small.pt2", min_size=48, max_size=96) == 0
    program = torch.export.load(tmp_path / "small.pt2").module()
    assert program(torch.rand(1, 3, 60, 90)).shape == (1, 2)
    with pytest.raises(UsageError, match="must end in .onnx or .pt2"):
        export.export_network(out / "best.safetensors", tmp_path / "small.bin")


def test_a_torn_picture_is_named(trained):
    data, out = trained
    torn = data / "val" / "low" / "torn.png"
    torn.write_bytes(b"torn")
    try:
        assert verify_imagenet(data) == 1
        with pytest.raises(ValueError, match="torn.png"):
            eval_imagenet(data, out / "last.safetensors", options=AT_ONCE)
    finally:
        torn.unlink()


def test_two_processes_talk_once(trained, tmp_path):
    words = ["train", "imagenet", "--data", trained[0], "--out", tmp_path / "two", "--network", "small"]
    words += ["--image-size", "64", "--position", "factored", "--epochs", "1", "--batch-size", "16", "--lr", "0.4"]
    words += ["--augment", "gentle", "--workers", "0", "--device", "cpu", "--no-tensorboard"]
    said = run_ranks("-m", "lesa_nb.cli", *words)
    assert said.count("2 process(es) on cpu") == 1
    assert "2 process(es) x 1 " in said and "x 8 samples" in said


def test_the_same_for_coco(tmp_path):
    folder, out = tmp_path / "coco", tmp_path / "detector"
    assert make_coco_folder(folder, train=16, val=4, test=2, size=96) == 0
    assert verify_coco_folder(folder) == 0
    run = RunOptions(epochs=1, workers=0, no_tensorboard=True)
    assert train_coco(folder, run=run, out=out, network="small", image_size=96) == 0
    assert eval_coco(folder, weights=out / "last.safetensors", options=AT_ONCE, out=tmp_path / "scores.json") == 0
    scored = json.loads((tmp_path / "scores.json").read_text())
    reported = json.loads((out / "last.json").read_text())["scores"]
    assert 100 * (scored["mask"]["AP"] or 0) == pytest.approx(reported["mask AP"], abs=1e-3)
    assert export.testdev_file(folder, out / "last.safetensors", tmp_path / "testdev.json", options=AT_ONCE) == 0
    found = json.loads((tmp_path / "testdev.json").read_text())
    assert {r["category_id"] for r in found} <= {2, 17, 90}
    (folder / "val2017" / "000000200000.jpg").unlink()
    assert verify_coco_folder(folder) == 1


# The demo's files, and what can be asked of them


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "a folder; ünd so"
    see.run_demo(out, quick=True)
    return out


def lesa(capsys, *words):
    "Run a command in this very process: exit status, stdout, stderr."
    capsys.readouterr()
    status = main([str(word) for word in words])
    return status, *capsys.readouterr()


def test_a_quick_demo_leaves_every_file(demo, tmp_path, capsys):
    plain = {"metrics.json", "learning_curves.png", "explain.png", "explain_twin.png"}
    weights = {f"{task}_{term}.safetensors" for task in ("digits", "twin") for term in ("conv", "attention", "lesa")}
    assert {p.name for p in demo.iterdir()} == plain | weights
    assert "nothing was learned" in lesa(capsys, "demo", "--quick", "--out", tmp_path / "again")[1]
    with pytest.raises(UsageError, match="steps must be at least 1, got 0"):
        see.run_demo(demo, steps=0)
    with pytest.raises(UsageError, match="seed must be at least 0, got -1"):
        see.run_demo(demo, seed=-1)
    with pytest.raises(UsageError, match="seed must be at most"):
        see.run_demo(tmp_path / "none", seed=2**63)
    assert not (tmp_path / "none").exists()


@pytest.fixture
def flower(tmp_path):
    from lesa_nb.data.photos import sample_photo

    path = tmp_path / "flower; näh.png"
    sample_photo("flower").save(path)
    return path


def test_a_disk_that_is_full_after_the_work_is_a_failure_and_no_refusal(flower, tmp_path, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        explored = lesa(capsys, "explore", flower, "--size", 64, "--layer", "layer4.2.conv2", "--mean",
                        "--out", tmp_path / "a.html")
        learned = lesa(capsys, "demo", "--quick", "--out", tmp_path / "demo")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for status, _, complained in (explored, learned):
        assert status == 1 and "could not be written" in complained.splitlines()[-1], complained
    assert not (tmp_path / "a.html").exists() and not list((tmp_path / "demo").iterdir())


def test_explain_and_explore_with_the_demos_weights(demo, flower, tmp_path, capsys):
    weights, figure, page = demo / "twin_lesa.safetensors", tmp_path / "figure.png", tmp_path / "page.html"
    words = ["explain", flower, "--weights", weights, "--pixel", "300,200", "--out", figure]
    status, said, complained = lesa(capsys, *words)
    assert (status, complained) == (0, "")
    assert "640x427, the network sees it at 160x105" in said and "UNTRAINED" not in said
    assert figure.read_bytes().startswith(b"\x89PNG")
    words = [
        "explore",
        flower,
        "--weights",
        weights,
        "--size",
        "80",
        "--layer",
        "blocks.1.conv2",
        "--mean",
        "--out",
        page,
    ]
    status, said, complained = lesa(capsys, *words)
    assert (status, complained) == (0, "")
    assert "sees it at 80x55" in said and page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_every_mistake_is_one_line(demo, flower, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text, weights, full = tmp_path / "text.jpg", demo / "twin_lesa.safetensors", tmp_path / "full"
    text.write_text("no picture")
    full.mkdir()
    (full / "letter.txt").write_text("dear")
    mistakes = [
        (["explain", "gone.jpg"], "gone.jpg: missing file (no such file)"),
        (["explain", text], "text.jpg: not a picture"),
        (["explain", full], "a folder, not a picture"),
        (
            ["explain", flower, "--pixel", "640,0"],
            "pixel 640,0 lies outside the picture, which is 640 wide and 427 high",
        ),
        (["explain", flower, "--pixel", "-1,0"], "pixel -1,0 lies outside"),
        (["explain", flower, "--pixel", "middle"], "wants two whole numbers X,Y"),
        (["explain", flower, "--weights", "gone.pth"], "gone.pth: no such file of weights"),
        (["explain", flower, "--weights", text], "text.jpg"),
        (["explain", flower, "--weights", demo / "twin_conv.safetensors"], "expected LESA or plain attention"),
        (["explain", flower, "--weights", weights, "--layer", "nose"], "there are blocks.0.conv2, blocks.1.conv2"),
        (["explain", flower, "--weights", weights, "--size", "3"], "choose a larger --size"),
        (["explain", flower, "--out", flower], "would overwrite the picture"),
        (["explain", flower, "--out", full], "a folder"),
        (["explain", flower, "--out", full / "figure.doc"], "figures can be written as"),
        (["explain", flower, "--out", text / "figure.png"], "text.jpg"),
        (["explore", "gone.jpg"], "gone.jpg: missing file (no such file)"),
        (["explore", flower, "--out", flower], "a page is written as .html"),
        (["demo", "--steps", "0"], "--steps must be at least 1"),
        (["demo", "--stpes", "4"], "--stpes"),
        (["train", "imagenet", "--data", full, "--out", full / "run"], "no such folder; expected train/ and val/"),
        (["train", "imagenet", "--data", "gone", "--epochs", "0"], "--epochs must be at least 1"),
        (["train", "imagenet", "--data", "gone", "--recipe", "secret"], "secret"),
        (["eval", "imagenet", "--data", "gone", "--weights", text], "text.jpg"),
        (["eval", "imagenet", "--data", "gone", "--weights", weights], "holds no classifier"),
        (["verify-data", "imagenet", "gone"], "gone: no such folder"),
        (["make-data", "imagenet", full], "exists already and is not empty"),
        (["export", "--weights", "gone.pth", "--out", "net.onnx"], "gone.pth: no such file of weights"),
        (["train", "coco", "--data", "gone", "--network", "small"], "gone"),
        (["eval", "coco", "--data", "gone", "--weights", text], "gone"),
        (["train"], "imagenet"),
        (["dmeo"], "dmeo"),
        ([], "demo"),
    ]
    for words, sentence in mistakes:
        status, said, complained = lesa(capsys, *words)
        assert status == 2 and sentence in complained, (words, status, complained)
        assert "Traceback" not in complained and complained.count("\n") == 1


def test_help_of_a_command_imports_nothing_heavy(capsys):
    assert lesa(capsys, "train", "imagenet", "--help")[0] == 0
    heavy = {"torch", "matplotlib", "PIL", "numpy"}
    code = "import sys; from lesa_nb.cli import main; main(['explain', '--help']); "
    code += f"print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--pixel X,Y" in done.stdout
    assert done.stdout.splitlines()[-1] == ""
