"""A classifier class by class: counts equal to loops, tables and files for two classes and for a thousand."""

import csv
import json
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_ranks

from lesa_nb.cli import main
from lesa_nb.look.confusion import _label, _pooled, _shares, confusion_figure
from lesa_nb.look.figures import save_png
from lesa_nb.models.registry import build_classifier
from lesa_nb.tasks.classify import score_folder
from lesa_nb.tasks.confusion import ClassScores, score_by_class, write_class_scores
from lesa_nb.tasks.predict import predict
from lesa_nb.weights.files import save_weights
from lesa_nb.weights.load import load


def save(path, classes):
    "A small network with random weights, as a run writes it."
    torch.manual_seed(3)
    net = dict(network="small", term="lesa", position="factored", image_size=32)
    model = build_classifier(num_classes=len(classes), **net)
    save_weights(model, path, arch="classifier", classes=classes, recipe={}, **net)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("scores; ü")
    draws = np.random.default_rng(0)
    for task, classes in dict(ten=10, two=2).items():
        for k in range(classes):
            folder = home / task / "val" / f"class {k}"
            folder.mkdir(parents=True)
            for i in range(3 + k % 3):
                pixels = draws.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((32, 32)).save(folder / f"{i}.png")
        save(home / f"{task}.safetensors", [f"class {k}" for k in range(classes)])
    return home


def by_hand(loaded, folder):
    "Counts by asking for one picture after the other."
    counts = torch.zeros(len(loaded.classes), len(loaded.classes), dtype=torch.long)
    for row, name in enumerate(loaded.classes):
        for answer in predict(loaded, sorted((folder / name).iterdir()), top=1):
            counts[row, loaded.classes.index(answer["classes"][0]["name"])] += 1
    return counts


@pytest.mark.parametrize("score", [score_folder, score_by_class])
def test_a_size_at_which_nothing_is_left_to_attend_to_is_refused(home, score):
    with pytest.raises(ValueError, match="image_size must be at least 9 for small, .*got 8"):
        score(load(home / "two.safetensors"), home / "two", image_size=8)
    assert score(load(home / "two.safetensors"), home / "two", image_size=16)


@pytest.mark.parametrize("task", ["ten", "two"])
def test_counts_are_those_of_asking_picture_by_picture(home, task):
    loaded = load(home / f"{task}.safetensors")
    scores, by_class = score_by_class(loaded, home / task, batch_size=4)
    assert torch.equal(by_class.counts, by_hand(loaded, home / task / "val"))
    assert by_class.classes == loaded.classes and sum(by_class.pictures) == scores["samples"]
    assert 100 * sum(by_class.right) / scores["samples"] == pytest.approx(scores["top1"], abs=1e-4)
    assert ("top5" in scores) == (task == "ten")  # of two classes it would say nothing


@pytest.mark.parametrize("task", ["ten", "two"])
def test_the_command_prints_it_and_writes_what_is_asked_for(home, task, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["eval", "imagenet", "--data", home / task, "--weights", home / f"{task}.safetensors", "--workers", 0]
    assert main([*map(str, words)]) == 0
    said = capsys.readouterr().out
    loaded = load(home / f"{task}.safetensors")
    assert all(f"\n{name} " in said for name in loaded.classes) and "class, the worst first" in said
    assert ("top-5" in said) == (task == "ten")
    assert not list(tmp_path.iterdir())  # nothing was asked for
    out, folder = tmp_path / "scores.json", tmp_path / "new" / "confusion; ü"
    assert main([*map(str, words), "--out", str(out), "--confusion", str(folder)]) == 0
    counts = by_hand(loaded, home / task / "val")
    written = json.loads(out.read_text())
    right = {name: 100 * counts[i, i].item() / counts[i].sum().item() for i, name in enumerate(loaded.classes)}
    assert written["classes"] == pytest.approx(right)
    assert {p.name for p in folder.iterdir()} == {"confusion.png", "confusion.csv", "classes.csv"}
    head, *rows = csv.reader((folder / "confusion.csv").open(encoding="utf-8"))
    assert head[1:] == [row[0] for row in rows] == loaded.classes
    assert torch.equal(torch.tensor([[int(n) for n in row[1:]] for row in rows]), counts)
    table = list(csv.DictReader((folder / "classes.csv").open(encoding="utf-8")))
    assert [float(row["percent"]) for row in table] == pytest.approx(list(right.values()), abs=1e-4)
    assert Image.open(folder / "confusion.png").size > (200, 200)
    assert main([*map(str, words), "--confusion", str(folder)]) == 0  # once more is no mistake


def test_a_place_that_cannot_be_written_to_is_refused_before_any_work(home, tmp_path, capsys):
    words = ["eval", "imagenet", "--data", "gone", "--weights", "gone.pth", "--confusion"]
    for place in (home / "ten.safetensors", home / "ten.safetensors" / "below"):
        assert main([*words, str(place)]) == 2
        assert "--confusion wants the name of a folder" in capsys.readouterr().err
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        assert main([*words, str(tmp_path / "locked" / "new")]) == 2
        assert "may not be written to" in capsys.readouterr().err


def test_two_processes_count_each_picture_once(home, tmp_path):
    words = ["eval", "imagenet", "--data", home / "ten", "--weights", home / "ten.safetensors", "--workers", "0"]
    words += ["--device", "cpu", "--out", tmp_path / "scores.json", "--confusion", tmp_path / "confusion"]
    said = run_ranks("-m", "lesa_nb.cli", *words)
    assert said.count("class, the worst first") == said.count("confusion matrix: ") == 1
    _, *rows = csv.reader((tmp_path / "confusion" / "confusion.csv").open(encoding="utf-8"))
    counts = by_hand(load(home / "ten.safetensors"), home / "ten" / "val")
    assert torch.equal(torch.tensor([[int(n) for n in row[1:]] for row in rows]), counts)


def test_more_classes_than_memory_allows_are_scored_in_all_only(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lesa_nb.tasks.confusion.MOST_CLASSES", 9)
    words = ["eval", "imagenet", "--data", home / "ten", "--weights", home / "ten.safetensors", "--workers", 0]
    assert main([*map(str, words), "--confusion", str(tmp_path / "new")]) == 2
    assert "--confusion is for at most 9 classes, the network has 10" in capsys.readouterr().err
    assert main([*map(str, words), "--out", str(tmp_path / "scores.json")]) == 0
    assert "more than 9 classes: not counted one by one" in capsys.readouterr().out
    assert "classes" not in json.loads((tmp_path / "scores.json").read_text()) and not (tmp_path / "new").exists()


# ---- the table


def of_many(n=1000, empty=5):
    counts = torch.diag(torch.arange(n) % 50 + 1)
    counts += torch.roll(torch.eye(n, dtype=torch.long), 1, 1)*(50 - torch.arange(n) % 50)[:, None]
    counts[empty] = 0
    return ClassScores([f"n{i:08d}" for i in range(n)], counts)


def test_of_a_thousand_classes_the_worst_twenty_are_shown():
    lines = of_many().format().splitlines()
    assert len(lines) == 23 and lines[0].startswith("class, the worst first")
    assert lines[1].split() == ["n00000000", "2.0", "%", "1", "of", "51", "n00000001", "(50)"]
    assert lines[21] == "and 979 more classes, 3.9 to 98.0 % right"
    assert lines[22] == "1 class without pictures"


def test_classes_of_uneven_size_have_a_mean_of_their_own():
    said = ClassScores(["many", "few"], torch.tensor([[90, 10], [1, 1]])).format()
    assert said.splitlines()[-1] == "mean of 2 classes, each counted alike: 70.00 %"
    assert "few" in said.splitlines()[1] and said.splitlines()[1].endswith("many (1)")
    even = ClassScores(["a", "b"], torch.tensor([[2, 0], [1, 1]]))
    assert "mean" not in even.format() and even.mistaken(0) is None and even.mistaken(1) == (0, 1)


def test_names_of_any_kind_stay_on_their_line(tmp_path):
    names = ["猫 and 犬", "two\nlines", "caf\udce9", 'a "quoted", name', "=1+1", "$x$"]
    scores = ClassScores(names, torch.eye(6, dtype=torch.long))
    lines = scores.format().splitlines()
    assert len(lines) == 7 and "two\\nlines" in lines[2]
    write_class_scores(scores, tmp_path)
    rows = list(csv.DictReader((tmp_path / "classes.csv").open(encoding="utf-8")))
    assert rows[0]["class"] == "猫 and 犬" and rows[3]["class"] == 'a "quoted", name' and rows[5]["class"] == "$x$"


def test_a_class_without_pictures_has_no_accuracy():
    accuracy = of_many(10).accuracy()
    assert math.isnan(accuracy["n00000005"]) and accuracy["n00000001"] == pytest.approx(100 * 2 / 51)


# ---- the picture


@pytest.mark.parametrize("n", [1, 2, 15, 16, 40, 41, 400, 401, 1000])
def test_the_picture_says_what_it_shows(n, tmp_path):
    scores = of_many(n, empty=n // 2)
    fig = confusion_figure(scores.counts, scores.classes, "a finding")
    ax, bar = fig.axes
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert (labels == scores.classes) == (n <= 40)
    assert ("number of the class" in ax.get_xlabel()) == (n > 40)
    assert bool(ax.texts) == (1 < n <= 15) and ("square-root" in bar.get_ylabel()) == (n > 15)
    assert ("each dot: the largest share of" in ax.get_title(loc="left")) == (n > 400)
    size = Image.open(save_png(fig, tmp_path / "fig.png")).size
    assert 200 < min(size) and max(size) < 1100


def test_a_single_mistake_among_a_thousand_classes_is_a_dot_of_its_own():
    counts = np.diag(np.full(1000, 50))
    counts[700, 123] = 1
    drawn = confusion_figure(counts, [str(i) for i in range(1000)]).axes[0].images[0].get_array()
    row, column = 700 // 3, 123 // 3
    assert drawn[row, column] == pytest.approx(100 / 51) and (drawn > 0).sum() == 334 + 1


def test_shares_and_their_largest():
    shares = _shares(np.array([[1.0, 3, 0], [0, 0, 0], [2, 0, 2]]))
    assert shares[0].tolist() == [25, 75, 0] and np.isnan(shares[1]).all() and shares[2].tolist() == [50, 0, 50]
    assert np.array_equal(_pooled(shares, 1), shares, equal_nan=True)
    assert np.array_equal(_pooled(shares, 2), [[75, 0], [50, 50]])
    assert np.isnan(_pooled(np.full((3, 3), np.nan), 2)).all()


def test_names_that_the_font_lacks_become_numbers():
    assert _label("dog", 3) == "dog" and _label("猫", 3) == "class 3" and len(_label("a" * 100, 3)) == 24


def test_another_shape_is_refused():
    for counts, names in ((np.zeros((2, 3)), ["a", "b"]), (np.zeros((2, 2)), ["a"]), (np.zeros((0, 0)), [])):
        with pytest.raises(ValueError, match="expected a square of counts with a name for each row"):
            confusion_figure(counts, names)
