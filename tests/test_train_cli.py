"""`lesa train`, `eval`, `verify-data`, `make-data`, `export` as a user types them: what they say, stopped or misled."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import numpy as np
import processes
import pytest
import torch
from PIL import Image

from lesa_nb.cli import app as cli
from lesa_nb.data.drawn import make_image_folder
from lesa_nb.engine._checkpoint import read_checkpoint
from lesa_nb.engine.log import read_log

SMALL = [
    "--network",
    "small",
    "--image-size",
    "64",
    "--position",
    "factored",
    "--augment",
    "gentle",
    "--device",
    "cpu",
    "--no-tensorboard",
    "--batch-size",
    "8",
]


def training(data, out, *, epochs, workers, small=SMALL):
    "The words of a small run."
    return ["train", "imagenet", "--data", data, "--out", out, *small, "--epochs", epochs, "--workers", workers]


def environment(**env):
    env = processes.environment(**env)
    for name in ("DISPLAY", "MPLBACKEND", "RANK", "WORLD_SIZE"):
        env.pop(name, None)
    return env


def lesa(*words, **env):
    return processes.lesa(*words, env=environment(**env))


def torchrun(*words):
    command = processes.torchrun("-m", "lesa_nb.cli", *words)
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)


def one_line(done, status, *parts):
    "The command ended with this status, and said one line that holds these parts."
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("lesa")]
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_image_folder(
        tmp_path_factory.mktemp("data") / "two words; größe", task="corner", train=24, val=9, size=64
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    "A finished run of two epochs, in a folder with an awkward name, from a home that cannot be written to."
    out = tmp_path_factory.mktemp("run") / "my run; é"
    done = lesa(
        *training(data, out, epochs=2, workers=0),
        HOME="/proc/nowhere",
    )
    assert done.returncode == 0, done.stderr
    return done, out


def test_a_run_says_what_it_does(run):
    done, out = run
    for part in (
        "small, term lesa, factored tables for 64 px, 2 classes",
        "recipe published: epochs 2",
        "learning rate: 0.05 for 128 samples, so 0.003125 for 8",
        "batch norm sees 8 samples",
        "a new run: 48 images to train on, 18 to validate",
        "epoch 2/2: top1",
        "best top1",
    ):
        assert part in done.stdout, done.stdout
    assert {
        "best.json",
        "best.safetensors",
        "curves.png",
        "last.json",
        "last.pt",
        "last.safetensors",
        "lock",
        "log.jsonl",
    } == set(os.listdir(out))
    metadata = json.loads((out / "last.json").read_text())
    assert (
        metadata["recipe"]["name"] == "published"
        and metadata["classes"] == ["high", "low"]
        and metadata["scores"]["top1"] >= 0
    )


def test_eval_gives_the_runs_number(run, data, tmp_path):
    _, out = run
    done = lesa(
        "eval",
        "imagenet",
        "--data",
        data,
        "--weights",
        out / "last.safetensors",
        "--workers",
        "0",
        "--out",
        tmp_path / "scores.json",
    )
    assert done.returncode == 0 and "18 pictures: top-1" in done.stdout, done.stderr
    assert json.loads((tmp_path / "scores.json").read_text())["top1"] == pytest.approx(
        json.loads((out / "last.json").read_text())["scores"]["top1"], abs=1e-4
    )


def test_explain_opens_the_weights(run, data, tmp_path):
    done = lesa(
        "explain",
        next((data / "val" / "low").iterdir()),
        "--weights",
        run[1] / "best.safetensors",
        "--out",
        tmp_path / "a.png",
    )
    assert done.returncode == 0 and "small_resnet from best.safetensors, top-1" in done.stdout, done.stderr


def test_refusals(run, data, tmp_path, capsys):
    _, out = run
    train = ["train", "imagenet", "--data", data, *SMALL, "--workers", "0", "--epochs", "2"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    other = make_image_folder(tmp_path / "other", task="twin", train=4, val=2, size=64)
    os.rename(other / "val" / "red", other / "val" / "rot")
    before = (out / "last.pt").read_bytes()
    for words, parts in (
        ([*train, "--out", out], ["holds a run already"]),
        ([*train, "--out", out, "--resume", "auto", "--seed", "5"], ["seed: 0 there, 5 now"]),
        ([*train, "--out", out, "--resume", "auto", "--term", "conv"], ["term: 'lesa' there, 'conv' now"]),
        ([*train, "--out", tmp_path / "file" / "run"], ["cannot write there"]),
        (
            ["train", "imagenet", "--data", tmp_path / "empty", "--out", tmp_path / "x", *SMALL],
            ["expected train/ and val/"],
        ),
        (["train", "imagenet", "--data", other, "--out", tmp_path / "x", *SMALL], ["classes differ", "red", "rot"]),
        ([*train, "--out", tmp_path / "x", "--image-size", "7"], ["image_size must be at least 9 for small"]),
        ([*train, "--out", tmp_path / "x", "--epochs", "99999999999"], ["--epochs must be at most 10,000,000"]),
        ([*train, "--out", tmp_path / "x", "--epochs", "200000"], ["epochs of a recipe must be whole, at least 1 and"]),
        ([*train, "--out", tmp_path / "x", "--accumulate", "3"], ["choose a batch size that 3 divides"]),
        ([*train, "--out", tmp_path / "x", "--device", "cuda:7"], ["cuda:7"]),
        (
            ["eval", "imagenet", "--data", other, "--weights", out / "best.safetensors"],
            ["3 classes, but the network knows 2"],
        ),
    ):
        found = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        one_line(subprocess.CompletedProcess(words, found, said.out, said.err), 2, *parts)
    assert (out / "last.pt").read_bytes() == before and not (tmp_path / "x").exists()


def test_verify_and_make_data(tmp_path):
    done = lesa("make-data", "imagenet", tmp_path / "made", "--train", "4", "--val", "2")
    assert done.returncode == 0 and "ready for lesa train imagenet" in done.stdout
    assert lesa("verify-data", "imagenet", tmp_path / "made").returncode == 0
    broken = tmp_path / "made" / "train" / "red" / "00001.png"
    broken.write_bytes(broken.read_bytes()[:100])
    done = lesa("verify-data", "imagenet", tmp_path / "made")
    assert done.returncode == 1 and "red/00001.png: broken picture" in done.stdout and "Traceback" not in done.stderr
    done = lesa(
        *training(tmp_path / "made", tmp_path / "run", epochs=1, workers=2, small=[*SMALL[:-1], "4"]),
    )
    one_line(done, 1, "red/00001.png: broken picture", "mend it and resume")


def start(words, ranks, by, log):
    "Processes of one run, started by us or by torchrun, and the file of what they say."
    if by == "torchrun":
        command = processes.torchrun("-m", "lesa_nb.cli", *words, ranks=ranks)
        return [subprocess.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT)]
    if ranks == 1:
        return [forked.Python(["-m", "lesa_nb.cli", *words], env=environment(), stdout=log, stderr=subprocess.STDOUT)]
    return processes.several("-m", "lesa_nb.cli", *words, ranks=ranks, env=environment(), stdout=log)


@pytest.mark.parametrize(
    "workers, ranks, by",
    [
        (0, 1, "us"),
        pytest.param(2, 1, "us", marks=pytest.mark.slow),
        (0, 2, "us"),
        pytest.param(0, 2, "torchrun", marks=pytest.mark.slow),
    ],
)
def test_sigterm_while_training(data, tmp_path, workers, ranks, by):
    words = training(data, tmp_path / "run", epochs=200, workers=workers)
    with open(tmp_path / "log.txt", "w") as log:
        started = start(words, ranks, by, log)
        deadline = time.monotonic() + 150
        while (
            not (tmp_path / "run" / "log.jsonl").exists()
            or sum(e["kind"] == "step" for e in read_log(tmp_path / "run")) < 8
        ):
            alive = all(process.poll() is None for process in started)
            assert alive and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
            time.sleep(0.1)
        for process in started:
            process.send_signal(signal.SIGTERM)
        statuses = [process.wait(60) for process in started]
    text = (tmp_path / "log.txt").read_text()
    if by == "us":
        assert statuses == [143] * ranks, text
    else:
        assert statuses[0] != 0  # torchrun has a status of its own
    assert text.count("everything is in") == 1, text
    saved = read_checkpoint(tmp_path / "run" / "last.pt")
    steps = 6 * saved["epoch"] + saved["step"]
    assert steps >= 8 or ranks > 1
    words += ["--resume", "auto", "--stop-after", saved["epoch"] + 1]
    where = f"resumed in epoch {saved['epoch'] + 1} after step {saved['step']}"
    if by == "torchrun":
        rest = torchrun(*words)
        assert rest.returncode == 0 and where in rest.stdout, rest.stderr
    else:
        assert where in processes.run_ranks("-m", "lesa_nb.cli", *words, ranks=ranks, env=environment())


def test_sigterm_while_starting(data, tmp_path):
    words = training(data, tmp_path / "run", epochs=200, workers=0)
    command = [sys.executable, "-m", "lesa_nb.cli", *map(str, words)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(2)  # somewhere among the imports
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode in (143, -signal.SIGTERM)  # heard, or too early for anything to be lost
    done = lesa(*words, "--resume", "auto", "--stop-after", "1")
    assert done.returncode == 0, done.stderr


def test_two_processes_equal_one(data, tmp_path):
    words = ["train", "imagenet", "--data", data, *SMALL, "--epochs", "2", "--workers", "0", "--precision", "float64"]
    for name, start in (("one", lesa), ("two", torchrun)):  # as README says
        done = start(*words, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    one, two = (read_checkpoint(tmp_path / name / "last.pt") for name in ("one", "two"))
    for key, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][key], tensor, rtol=1e-6, atol=1e-6)
    assert one["scores"] == pytest.approx(two["scores"], abs=1e-5)


def test_float16_tf32_and_deterministic(data, tmp_path):
    "The switches of a GPU are taken on a CPU as well, by both kinds of run that go on from each other."
    words = training(data, tmp_path / "run", epochs=2, workers=0)
    words += ["--precision", "float16", "--deterministic", "--tf32"]
    for more in (["--stop-after", "1"], ["--resume", "auto"]):
        assert cli.main([str(word) for word in [*words, *more]]) == 0
    saved = read_checkpoint(tmp_path / "run" / "last.pt")
    told = saved["recipe"]
    assert (told["precision"], told["deterministic"], told["tf32"], saved["epoch"]) == ("float16", True, True, 2)
    assert saved["scaler"]["scale"] > 0 and not torch.are_deterministic_algorithms_enabled()
    assert cli.main([str(word) for word in [*words[:-1], "--resume", "auto"]]) == 2  # another recipe


def test_measure(data, tmp_path):
    done = lesa("train", "imagenet", "--data", data, "--out", tmp_path / "x", *SMALL, "--workers", "1", "--measure")
    assert done.returncode == 0 and "limits" in done.stdout and not (tmp_path / "x").exists(), done.stderr


def test_tensorboard(data, tmp_path):
    pytest.importorskip("tensorboard", reason="installed with [dev]")
    done = lesa(
        *training(data, tmp_path / "run", epochs=1, workers=0, small=[w for w in SMALL if w != "--no-tensorboard"]),
    )
    assert done.returncode == 0, done.stderr
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert {"step/loss", "step/lr", "valid/top1"} <= set(board.Tags()["scalars"])


@pytest.mark.slow
def test_export(run, tmp_path):
    done = lesa(
        "export",
        "--weights",
        run[1] / "best.safetensors",
        "--out",
        tmp_path / "net.onnx",
        "--min-size",
        "48",
        "--max-size",
        "96",
    )
    assert done.returncode == 0, done.stderr
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert session.run(None, {"image": np.random.rand(1, 3, 60, 90).astype(np.float32)})[0].shape == (1, 2)


def test_a_picture_of_any_kind_is_trained_on(data, tmp_path):
    "CMYK, greyscale, a palette and a wrong extension: read, not refused."
    import shutil

    folder = Path(shutil.copytree(data, tmp_path / "data"))
    files = sorted((folder / "train" / "low").iterdir())
    for path, mode, kind in zip(files, ("CMYK", "L", "P", "RGB"), ("JPEG", "PNG", "PNG", "JPEG")):
        with Image.open(path) as image:
            changed = image.convert(mode)
        changed.save(path, kind)
    done = lesa(
        "train", "imagenet", "--data", folder, "--out", tmp_path / "run", *SMALL, "--epochs", "1", "--workers", "0"
    )
    assert done.returncode == 0, done.stderr
