"""Fashion-MNIST from a folder: read, refused, disturbed, and a benchmark that goes on where it stopped."""
import base64
import io
import json
import os
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lesa_nb.data.pictures import Samples
from lesa_nb.study.demo import train_demo
from lesa_nb.study.fashion import (
    DISTURBANCES,
    FASHION_CLASSES,
    disturbed_finding,
    disturbed_table,
    fashion_at_hand,
    fashion_row,
    mean_disturbed,
    mean_gates,
    read_fashion,
    show_errors,
)
from lesa_nb.study.report import show_wrong, wrong_answers
from lesa_nb.study.results import describe_study, read_study
from lesa_nb.study.small import train_small
from lesa_nb.tasks.side_by_side import THREE_TERMS
from lesa_nb.weights.load import load


def write_idx(path, array):
    "A file of bytes as MNIST's readers want it."
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.numpy().tobytes())


@pytest.fixture(scope="session")
def clothes(tmp_path_factory):
    "A folder like Fashion-MNIST's: 320 and 80 pictures, a bar whose height is the class."
    root, generator = tmp_path_factory.mktemp("clothes"), torch.Generator().manual_seed(0)
    raw = root/"FashionMNIST"/"raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 320), ("t10k", 80)):
        labels = torch.arange(count, dtype=torch.uint8) % 10
        images = torch.randint(0, 60, (count, 28, 28), dtype=torch.uint8, generator=generator)
        for image, label in zip(images, labels.tolist()):
            image[3:5 + 2*label, 8:20] += 150
        write_idx(raw/f"{name}-images-idx3-ubyte", images)
        write_idx(raw/f"{name}-labels-idx1-ubyte", labels)
    return root


def test_read_whole_or_in_part(clothes):
    problem, files = read_fashion(clothes)
    assert (files["train"], files["valid"], len(files["sha256"])) == (320, 80, 64)
    assert problem.valid.images.shape == (80, 1, 28, 28) and len(FASHION_CLASSES) == 10
    assert problem.valid.labels.bincount().tolist() == [8]*10
    whole = torch.cat([images for images, _ in problem.batches(320, 1, torch.Generator())])
    assert whole.mean().abs() < 1e-5 and (whole.std() - 1).abs() < 1e-5
    some = read_fashion(clothes, train=100, valid=20)
    assert (some.files["train"], some.files["valid"]) == (100, 20)
    assert some.problem.valid.images.equal(read_fashion(clothes, train=100, valid=20).problem.valid.images)
    assert some.files["sha256"] == files["sha256"]


def test_refusals(clothes, tmp_path):
    with pytest.raises(FileNotFoundError, match="Fashion-MNIST's four files, .*found no train-images-.*: name"):
        read_fashion(tmp_path)
    for count in (0, -1, 321):
        with pytest.raises(ValueError, match=f"train: expected 1 to 320 pictures.*got {count}"):
            read_fashion(clothes, train=count)
    raw = tmp_path/"FashionMNIST"/"raw"
    raw.mkdir(parents=True)
    for path in (clothes/"FashionMNIST"/"raw").iterdir():
        (raw/path.name).write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="torchvision cannot read these files"):
        read_fashion(tmp_path)


def test_disturbances_do_what_they_say():
    images = torch.full((6, 1, 28, 28), -1.)
    images[:, :, 10:18, 4:24] = torch.rand(6, 1, 8, 20, generator=torch.Generator().manual_seed(1))

    def disturbed(name):
        return DISTURBANCES[name](images.clone(), torch.Generator().manual_seed(0), -1.)

    for name in DISTURBANCES:
        found = disturbed(name)
        assert found.shape == images.shape and found.equal(disturbed(name)) and not found.equal(images), name
    for before, after in zip(images, disturbed("shifted")):
        moved = [torch.roll(before, move, (1, 2)) for move in ((3, 0), (-3, 0), (0, 3), (0, -3))]
        assert any(after.equal(one) for one in moved)
    assert (disturbed("occluded") != images).flatten(1).sum(1).max() <= 100
    assert torch.where(disturbed("occluded") != images, disturbed("occluded"), -1.).eq(-1).all()
    for kind in (images, disturbed("patches shuffled")):
        assert kind.flatten(1).sort().values.equal(images.flatten(1).sort().values)
    corner, patches = images[0, 0, :7, 7:14], disturbed("patches shuffled")[0, 0].view(4, 7, 4, 7).transpose(1, 2)
    assert any(patch.equal(corner) for patch in patches.flatten(0, 1))
    assert (disturbed("noisy") - images).std().sub(.5).abs() < .02
    assert (disturbed("rotated").sum((1, 2, 3)) - images.sum((1, 2, 3))).abs().max() < .05*28*28


def test_a_row_holds_everything_and_fits_into_json(clothes):
    problem, _ = read_fashion(clothes)
    for term in THREE_TERMS:
        row = fashion_row(train_small(problem, term, steps=2, device="cpu"), problem.valid, looked_at=40)
        assert json.loads(json.dumps(row)) == row
        inside = row["inside"]
        assert inside["disturbed"].keys() == {"none", *DISTURBANCES}
        assert [len(block) for block in inside["gate_by_class"]] == ([10, 10] if term == "lesa" else [])
        assert all(0 < gate < 1 for block in inside["gate_by_class"] for gate in block)
        assert sum(map(sum, inside["mistakes"]["confusion"])) == 80
        assert 0 < len(inside["errors"]) <= 5 and row["looked_at"] == 40
        sure = [found["probability"] for found in inside["errors"]]
        assert sure == sorted(sure, reverse=True)
        for found in inside["errors"]:
            i = found["index"]
            assert found["label"] == problem.valid.labels[i] != found["answer"] and i < 40
            levels = torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(found["png"])))))
            assert (levels/255 - problem.valid.images[i, 0]*problem.std - problem.mean).abs().max() < 1/255
        right = sum(inside["mistakes"]["confusion"][i][i] for i in range(10))/80
        assert right == pytest.approx(row["accuracy"])
        first = train_small(problem, term, steps=2, device="cpu").model(problem.valid.images[:40]).argmax(1)
        share = (first == problem.valid.labels[:40]).float().mean().item()
        assert inside["disturbed"]["none"] == pytest.approx(share)


@pytest.fixture(scope="module")
def script(benchmark):
    return benchmark("fashion")


@pytest.fixture
def args(clothes, tmp_path, monkeypatch, script):
    "A quick run that writes into a folder of its own."
    monkeypatch.setattr("common.RESULTS", tmp_path/"results")
    return SimpleNamespace(data=clothes, train=128, valid=40, seeds=1, steps=2, batch_size=32, lr=1e-3, device="cpu",
                           quick=True, collect=False, split="every tenth picture", download=False)


def test_the_benchmark_trains_measures_and_goes_on(script, args, tmp_path, monkeypatch, capsys):
    tried, train = [], script.train_and_keep

    def counted(path, *rest):
        if len(tried) == 2: raise KeyboardInterrupt
        tried.append(path.name)
        return train(path, *rest)

    monkeypatch.setattr(script, "train_and_keep", counted)
    with pytest.raises(KeyboardInterrupt):
        script.main(args)
    assert len(json.loads((tmp_path/"results"/"fashion-cpu-quick.json").read_text())["not_run"]) == 1
    monkeypatch.setattr(script, "train_and_keep", lambda path, *rest: (tried.append(path.name), train(path, *rest))[1])
    script.main(args)
    assert len(tried) == len(set(tried)) == 3
    found = json.loads((tmp_path/"results"/"fashion-cpu-quick.json").read_text())
    assert {"question", "date", "commit", "torch", "device", "threads", "limits", "not_run", "rows"} <= found.keys()
    assert found["not_run"] == [] and [row["name"] for row in found["rows"]] == list(THREE_TERMS.values())
    assert found["data"]["split"] == "every tenth picture" and found["data"]["train"] == 128
    assert "one seed decides nothing" in capsys.readouterr().out
    fashion = read_fashion(args.data, train=args.train, valid=args.valid)
    path = tmp_path/"runs"/"fashion-cpu-quick"/tried[0]
    assert script.finished(path, script.wanted_run("conv", 0, fashion, args))
    for other in (dict(steps=3), dict(lr=1e-2), dict(batch_size=16)):  # another recipe is another run
        changed = SimpleNamespace(**vars(args) | other)
        assert not script.finished(path, script.wanted_run("conv", 0, fashion, changed))


def test_the_benchmark_refuses_before_it_makes_anything(script, args, tmp_path, capsys):
    args.data = tmp_path/"nothing"
    with pytest.raises(SystemExit) as stopped:
        script.main(args)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: expected Fashion-MNIST's four files, unpacked, in")
    assert not (tmp_path/"runs").exists() and not (tmp_path/"results").exists()


def test_samples_keep_their_order(clothes):
    "The first pictures of a part are the first of the whole."
    few, all_of_it = (read_fashion(clothes, train=64, valid=count).problem.valid for count in (10, None))
    assert isinstance(few, Samples) and few.labels.equal(all_of_it.labels[:10])


def test_a_file_that_nobody_has_made_reads_not_run(tmp_path):
    found = read_study(tmp_path/"fashion-cpu.json", "python benchmarks/study.py --task fashion --data DIR")
    assert describe_study(found) == "not run: python benchmarks/study.py --task fashion --data DIR"
    assert mean_disturbed(found["rows"]) == {} and disturbed_finding(found["rows"]) == "not run"
    assert mean_gates(found["rows"]) == {} and disturbed_table(found["rows"]) == "not run"
    assert "not run" in show_errors(found["rows"]).get_suptitle()
    assert wrong_answers(found["rows"], "Fashion-MNIST", THREE_TERMS.values()) == {}
    fig = show_wrong(found["rows"], "Fashion-MNIST", THREE_TERMS.values())
    assert fig.get_suptitle() == "Fashion-MNIST: not run"


def test_what_the_file_says_is_computed_from_its_rows(script, args, tmp_path):
    script.main(args)
    found = read_study(tmp_path/"results"/"fashion-cpu-quick.json", "")
    said = describe_study(found)
    for words in (script.QUESTION, found["date"], "128 pictures to train, 40 to validate; split: every tenth",
                  "one seed decides nothing", *found["limits"], "Not run\n- nothing is missing"):
        assert words in said
    means = {name: kinds for name, kinds in mean_disturbed(found["rows"]).items()}
    assert list(means) == ["undisturbed", *DISTURBANCES] and means["noisy"].keys() == set(THREE_TERMS.values())
    for row in found["rows"]:
        assert means["noisy"][row["name"]] == row["inside"]["disturbed"]["noisy"]
        c = torch.tensor(row["inside"]["mistakes"]["confusion"])
        wrong = wrong_answers(found["rows"], "Fashion-MNIST", [row["name"]])[row["name"]]
        assert wrong.sum() == c.sum() - c.trace() and not wrong.diag().any()
    fig = show_wrong(found["rows"], "Fashion-MNIST", THREE_TERMS.values())
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert [title.split(":")[0] for title in titles] == list(THREE_TERMS.values())
    drawn = show_errors(found["rows"])
    first = found["rows"][0]["inside"]["errors"][0]
    assert len(drawn.axes) == 6
    assert f"convolution\n\n{FASHION_CLASSES[first['label']]},\nnot " in drawn.axes[0].get_title()
    gates = next(row["inside"]["gate_by_class"] for row in found["rows"] if row["name"] == "LESA")
    assert list(mean_gates(found["rows"])) == list(FASHION_CLASSES)
    assert mean_gates(found["rows"])["Bag"]["block 2"] == pytest.approx(gates[1][8])
    for row in found["rows"]:
        row["inside"]["disturbed"] |= dict.fromkeys(DISTURBANCES, .9 if row["name"] == "LESA" else .1) | dict(none=.2)
    assert disturbed_finding(found["rows"]) == (
        "Fashion-MNIST, mean of 1 seed; highest: undisturbed convolution, "
        + ", ".join(f"{kind} LESA" for kind in DISTURBANCES))


def test_verdicts_on_disturbed_pictures_are_computed_from_all_seeds():
    "Mean and interval by Student's t over the seeds, and LESA against each rival."
    rows = [dict(seed=seed, name=name, chance=.1, looked_at=2000,
                 inside=dict(disturbed=dict(none=.8, noisy=base + off)))
            for name, base in (("convolution", .3), ("LESA", .5)) for seed, off in enumerate((0., .01, .02))]
    said = disturbed_table(rows).splitlines()
    assert said[0].split() == ["pictures", "convolution", "LESA"]
    assert said[1].split() == ["undisturbed", "80.0%", "+-", "0.0", "80.0%", "+-", "0.0"]
    assert said[2].split() == ["noisy", "31.0%", "+-", "2.5", "51.0%", "+-", "2.5"]
    assert said[3:] == ["noisy: LESA is ahead of convolution, +20.0 +- 0.0 points over 3 seeds."]


def test_the_name_that_runs_it(root, tmp_path):
    "`study.py --task fashion` is the one command; what is wrong is one sentence and exit status 2."
    def study(*words):
        return subprocess.run([sys.executable, root/"benchmarks"/"study.py", "--task", "fashion", "--quick", *words],
                              capture_output=True, text=True, env=os.environ | {"OUT": str(tmp_path)}, cwd=tmp_path)

    refused = study()
    assert refused.returncode == 2 and "found no train-images" in refused.stderr and "Traceback" not in refused.stderr
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_downloaded_is_said_in_one_sentence(tmp_path, monkeypatch):
    class Offline:
        def __init__(self, root, download):
            raise RuntimeError("Error downloading")
    monkeypatch.setattr("lesa_nb.study.fashion.FashionMNIST", Offline)
    with pytest.raises(OSError, match="cannot be downloaded into .*where there is a network"):
        read_fashion(tmp_path, download=True)


def test_the_demo_trains_on_clothes_where_they_are_at_hand(clothes, tmp_path, monkeypatch):
    data = tmp_path/"data"
    assert not fashion_at_hand(data)
    data.symlink_to(clothes)
    assert fashion_at_hand(data)
    told = []
    monkeypatch.setattr("lesa_nb.study.demo._FASHION", dict(steps=2, valid=64))
    metrics = train_demo(tmp_path/"out", steps=2, batch_size=16, valid=16, fashion=data,
                         watch=lambda losses, name, steps: told.append((name, steps)) or losses)
    assert [name for name, _ in told[-3:]] == [f"Fashion-MNIST, {name}" for name in THREE_TERMS.values()]
    assert metrics["results"]["Fashion-MNIST"]["lesa"]["pictures"] == 16
    assert (tmp_path/"out"/"explain_fashion.png").is_file()
    loaded = load(tmp_path/"out"/"fashion_lesa.safetensors")
    assert loaded.classes == list(FASHION_CLASSES)
    with pytest.raises(FileNotFoundError, match="found no train-images"):
        train_demo(tmp_path/"none", steps=1, batch_size=16, valid=16, fashion=tmp_path)
    assert not (tmp_path/"none").exists()
