"""Predictions: answers in the form that is promised, broken files named, the rest answered."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lesa_nb.cli import main
from lesa_nb.data.photos import open_image
from lesa_nb.models.registry import build_classifier, build_detector
from lesa_nb.tasks.predict import find_images, iter_predictions, predict
from lesa_nb.weights.files import save_weights
from lesa_nb.weights.load import load

CLASSES = ["cat", "dog", "two words"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.manual_seed(0)
    net = dict(network="small", term="lesa", position="factored", image_size=64)
    path = tmp_path_factory.mktemp("weights")/"small classifier.safetensors"
    save_weights(build_classifier(num_classes=3, **net), path, arch="classifier", classes=CLASSES, **net)
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    torch.manual_seed(0)
    net = dict(model="mask_rcnn", network="small", num_classes=3, image_size=128)
    path = tmp_path_factory.mktemp("weights")/"small detector.safetensors"
    save_weights(build_detector(**net), path, arch="detector", net=net, classes=CLASSES, category_ids=[1, 2, 3])
    return path


def picture(path, size=(80, 60), seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(path, **options)
    return path


def same(classes, others):
    "The same names in the same order, with the same scores but for rounding."
    assert [c["name"] for c in classes] == [c["name"] for c in others]
    assert [c["score"] for c in classes] == pytest.approx([c["score"] for c in others], abs=1e-5)


@pytest.fixture
def photos(tmp_path):
    "A messy folder: two formats, a folder below, a broken file, a text file, a hidden file, a name with spaces."
    folder = tmp_path/"my photos; 2026"
    picture(folder/"a b.jpg", seed=1)
    picture(folder/"deep"/"c.PNG", (64, 90), seed=2)
    (folder/"broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder/"notes.txt").write_text("hello")
    picture(folder/".hidden.png", seed=3)
    return folder


def test_finding_images(photos, tmp_path):
    names = [path.name for path in find_images([photos])]
    assert sorted(names) == ["a b.jpg", "broken.jpg", "c.PNG"]
    assert [path.name for path in find_images([f"{photos}/*.jpg", photos/"a b.jpg"])] == ["a b.jpg", "broken.jpg"]
    assert [path.name for path in find_images([photos/"notes.txt"])] == ["notes.txt"]  # named by hand: tried
    with pytest.raises(FileNotFoundError, match="gone.jpg.*no such file"):
        find_images([photos/"gone.jpg"])
    (tmp_path/"empty").mkdir()
    with pytest.raises(ValueError, match="no pictures in"):
        find_images([tmp_path/"empty"])


def test_classifier_answers(classifier, photos):
    found = predict(classifier, photos/"a b.jpg", top=2)
    assert len(found) == 1 and list(found[0]) == ["file", "classes"]
    assert found[0]["file"] == str(photos/"a b.jpg")
    first, second = found[0]["classes"]
    assert first["score"] >= second["score"] and {first["name"], second["name"]} <= set(CLASSES)
    every = predict(load(classifier), [photos/"a b.jpg", Image.open(photos/"deep"/"c.PNG")], top=99)
    assert every[1]["file"] is None
    assert all(abs(sum(c["score"] for c in answer["classes"]) - 1) < 1e-5 for answer in every)
    same(every[0]["classes"][:2], found[0]["classes"])


def test_classifier_says_what_the_model_says(classifier, photos):
    loaded = load(classifier)
    with torch.inference_mode():
        probs = loaded.model(loaded.transform(Image.open(photos/"a b.jpg"))[None]).softmax(1)[0]
    answer = {c["name"]: c["score"] for c in predict(loaded, photos/"a b.jpg", top=3)[0]["classes"]}
    torch.testing.assert_close(torch.tensor([answer[name] for name in CLASSES]), probs)


def test_the_batch_does_not_matter(classifier, photos):
    files = find_images([photos])
    alone, together = (predict(classifier, files, batch_size=size) for size in (1, 8))
    for one, other in zip(alone, together):
        assert one["file"] == other["file"] and ("error" in one) == ("error" in other)
        same(one.get("classes", []), other.get("classes", []))


def test_a_broken_picture_is_named_and_the_rest_goes_on(classifier, photos):
    answers = {answer["file"]: answer for answer in predict(classifier, find_images([photos]))}
    broken = answers[str(photos/"broken.jpg")]
    assert list(broken) == ["file", "error"] and "broken.jpg" in broken["error"]
    assert sum("classes" in answer for answer in answers.values()) == 2


@pytest.mark.fault("P5")
def test_pictures_are_seen_upright(classifier, tmp_path):
    path = picture(tmp_path/"turned.jpg", (90, 60), seed=4, quality=100, subsampling=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.save(tmp_path/"noted.png", exif=exif)
        image.transpose(Image.Transpose.ROTATE_270).save(tmp_path/"upright.png")
    noted, upright = predict(classifier, [tmp_path/"noted.png", tmp_path/"upright.png"])
    same(noted["classes"], upright["classes"])


def test_detector_answers(detector, photos):
    path, loaded = photos/"deep"/"c.PNG", load(detector)
    answer = predict(loaded, path, threshold=0)[0]
    assert list(answer) == ["file", "objects"] and answer["objects"]
    scores = [thing["score"] for thing in answer["objects"]]
    assert scores == sorted(scores, reverse=True)
    for thing in answer["objects"]:
        x1, y1, x2, y2 = thing["box"]
        assert 0 <= x1 <= x2 <= 64 and 0 <= y1 <= y2 <= 90 and thing["name"] in CLASSES
        assert thing["mask"]["size"] == [90, 64] and isinstance(thing["mask"]["counts"], str)
    json.dumps(answer)  # anything here fits into JSON
    middle = scores[len(scores)//2]
    fewer = predict(loaded, path, threshold=middle)[0]["objects"]
    assert [thing["score"] for thing in fewer] == [score for score in scores if score >= middle]
    assert predict(loaded, path, threshold=1)[0]["objects"] == []


def test_masks_are_the_models_own(detector, photos):
    from faster_coco_eval.core import mask

    loaded, image = load(detector), Image.open(photos/"a b.jpg").convert("RGB")
    answer = predict(loaded, image, threshold=0)[0]
    with torch.inference_mode():
        found = loaded.model([loaded.transform(image)])[0]
    assert len(answer["objects"]) == len(found["scores"])
    for thing, soft in zip(answer["objects"], found["masks"]):
        assert (mask.decode(thing["mask"]) == (soft[0] >= .5).numpy()).all()


def test_a_few_masks_at_a_time_are_all_of_them(detector, photos, monkeypatch):
    from lesa_nb.tasks import coco_results

    at_once = predict(detector, photos/"a b.jpg", threshold=0)
    monkeypatch.setattr(coco_results, "_AT_ONCE", 3*80*60)
    pasted = []
    loaded = load(detector)
    paste = type(loaded.model).paste
    monkeypatch.setattr(type(loaded.model), "paste", staticmethod(lambda *a: pasted.append(len(a[0])) or paste(*a)))
    few = predict(loaded, photos/"a b.jpg", threshold=0)
    assert [thing["mask"] for thing in few[0]["objects"]] == [thing["mask"] for thing in at_once[0]["objects"]]
    assert len(pasted) > 1 and max(pasted) == 3 and sum(pasted) == len(few[0]["objects"])


def test_a_large_picture_takes_no_more_memory_than_a_mask_of_it(detector, tmp_path):
    "All masks of one photograph of 12 megapixels, pasted at once, would take 7 GiB."
    Image.new("RGB", (4000, 3000), "blue").save(tmp_path/"x.png", compress_level=1)
    code = ("import sys; from lesa_nb.cli.app import main; from peak_memory import peak_mib; "
            "import lesa_nb.tasks.predict; before = peak_mib(); status = main(sys.argv[1:]); "
            "print(status, peak_mib() - before)")
    words = ["predict", "x.png", "--weights", detector, "--threshold", "0", "--out", "drawn", "--json", "found.json"]
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=300,
                          cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"})
    status, mebibytes = map(int, done.stdout.splitlines()[-1].split())
    assert status == 0 and len(json.loads((tmp_path/"found.json").read_text())[0]["objects"]) > 20
    assert mebibytes < 1500 and Image.open(tmp_path/"drawn"/"x_lesa.png").size == (4000, 3000)


@pytest.mark.parametrize("options", [dict(top=0), dict(threshold=-.1), dict(threshold=1.5)])
def test_numbers_out_of_range_are_refused(classifier, photos, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        predict(classifier, photos/"a b.jpg", **options)


def test_answers_come_one_by_one(classifier, photos):
    files = iter([photos/"a b.jpg", photos/"deep"/"c.PNG"])
    answers = iter_predictions(load(classifier), files, batch_size=1)
    next(answers)
    assert len(list(files)) == 1  # the second was not read yet


def test_command_for_a_classifier(classifier, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status = main(["predict", str(photos), "--weights", str(classifier), "--json", "out.json", "--top", "2"])
    out, err = capsys.readouterr()
    assert status == 1 and "Traceback" not in err
    assert "1 of 3 pictures could not be read" in err
    assert "broken.jpg: not a picture" in err and err.count("broken.jpg") == 1
    assert f"{photos}/a b.jpg: " in out and "%" in out
    answers = json.loads((tmp_path/"out.json").read_text())
    assert len(answers) == 3 and sum("error" in answer for answer in answers) == 1
    (photos/"broken.jpg").unlink()
    assert main(["predict", str(photos), "--weights", str(classifier)]) == 0
    assert not (tmp_path/"lesa_predictions").exists()


@pytest.mark.parametrize("ends, status", [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 1)])
def test_answers_that_were_found_are_kept(classifier, photos, tmp_path, capsys, monkeypatch, ends, status):
    "Whatever ends a command after hours: Ctrl-C, or a disk that is full of other things."
    asked = iter_predictions

    def some(*words, **options):
        yield next(asked(*words, **options))
        raise ends

    monkeypatch.setattr("lesa_nb.tasks.predict.iter_predictions", some)
    out = tmp_path/"out.json"
    assert main(["predict", str(photos), "--weights", str(classifier), "--json", str(out)]) == status
    assert [answer["file"] for answer in json.loads(out.read_text())] == [str(photos/"a b.jpg")]
    assert f"answers  {out}, of 1 of 3 pictures" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_an_open_picture_is_answered_like_its_file(kind, request, tmp_path):
    "16 bits are scaled and transparent pixels lie on white, whoever opened the file."
    loaded = load(request.getfixturevalue(kind))
    grey = np.random.default_rng(0).integers(0, 2**16, (64, 64), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path/"deep.png")
    inks = np.random.default_rng(1).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    Image.fromarray(inks, "RGBA").save(tmp_path/"clear.png")
    for name in ("deep.png", "clear.png"):
        with Image.open(tmp_path/name) as opened:
            seen = loaded.transform(opened)
            of_opened, of_file = predict(loaded, [opened, tmp_path/name], threshold=0)
        assert seen.equal(loaded.transform(open_image(tmp_path/name))) and seen.std() > .1
        assert of_opened == of_file | dict(file=None)
    odd = Image.fromarray(np.full((64, 64), 1e6, np.float32))
    (answer,) = predict(loaded, odd)
    assert "the picture: unclear range (values 1e+06" in answer["error"]


def test_command_for_a_detector_draws(detector, photos, tmp_path, capsys):
    picture(photos/"deep"/"A b.jpg", (40, 40), seed=5)  # the same name in another folder, on some systems
    (photos/"broken.jpg").unlink()
    command = ["predict", str(photos), "--weights", str(detector), "--threshold", "0", "--out", str(tmp_path/"drawn")]
    assert main([*command, "--json", str(tmp_path/"out.json")]) == 0
    capsys.readouterr()
    drawn = {path.name: Image.open(path).size for path in (tmp_path/"drawn").iterdir()}
    assert set(drawn) == {"a b_lesa.png", "A b_2_lesa.png", "c_lesa.png"} and drawn["c_lesa.png"] == (64, 90)
    assert len(json.loads((tmp_path/"out.json").read_text())) == 3


@pytest.mark.parametrize("words, says, status", [
    (["--weights", "gone.pth"], "gone.pth", 2),
    (["--weights", "WEIGHTS", "--top", "0"], "--top must be at least 1", 2),
    (["--weights", "WEIGHTS", "--threshold", "2"], "--threshold must lie in 0..1", 2),
    (["--weights", "WEIGHTS", "--out", "folder"], "--out is for detectors", 2),
    (["--weights", "WEIGHTS", "--json", "no/such/folder.json"], "its folder does not exist", 2),
    (["--weights", "WEIGHTS", "--device", "tpu"], "tpu", 2),
])
def test_mistakes_are_sentences(classifier, photos, tmp_path, capsys, monkeypatch, words, says, status):
    monkeypatch.chdir(tmp_path)
    words = [str(classifier) if word == "WEIGHTS" else word for word in words]
    assert main(["predict", str(photos/"a b.jpg"), *words]) == status
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err and len(err.strip().splitlines()) <= 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [photos.name]  # nothing was written


def test_a_classifier_answers_what_eval_scores(classifier, tmp_path):
    from lesa_nb.data.drawn import make_image_folder
    from lesa_nb.tasks.classify import score_folder

    folder = make_image_folder(tmp_path/"drawn", task="twin", train=1, val=6, size=64)
    loaded = load(classifier)
    files = find_images([folder/"val"])
    names = sorted(path.name for path in (folder/"val").iterdir())
    told = [answer["classes"][0]["name"] for answer in predict(loaded, files, top=1)]
    right = sum(names.index(path.parent.name) == CLASSES.index(name) for path, name in zip(files, told))
    loaded.metadata["classes_guessed"] = True  # the folders' names are colours, other ones than the network's
    scores = score_folder(loaded, folder)
    assert len(files) == 18 and scores["top1"] == pytest.approx(100*right/18)


def test_a_detector_answers_what_eval_scores(detector, tmp_path):
    from torch.utils.data import DataLoader

    from lesa_nb.data.coco import CocoFolder, collate_detection
    from lesa_nb.data.drawn_coco import make_coco
    from lesa_nb.tasks.coco_results import _predict_results
    from lesa_nb.tasks.detect_eval import _ValidSamples

    folder = CocoFolder(make_coco(tmp_path/"coco", train=1, val=3, test=1, size=96), "val2017")
    loaded = load(detector)
    batches = DataLoader(_ValidSamples(folder), 1, collate_fn=collate_detection)
    for image_id, results in _predict_results(loaded.model, batches, folder):
        objects = predict(loaded, folder.file(image_id), threshold=0)[0]["objects"]
        assert len(objects) == len(results)
        for thing, result in zip(objects, results):
            x, y, w, h = result["bbox"]
            assert thing["box"] == pytest.approx([x, y, x + w, y + h], abs=1e-3)
            assert thing["score"] == pytest.approx(result["score"]) and thing["mask"] == result["segmentation"]


def test_a_wrong_device_leaves_no_folder(detector, photos, tmp_path, capsys):
    words = ["predict", str(photos/"a b.jpg"), "--weights", str(detector), "--out", str(tmp_path/"drawn")]
    assert main([*words, "--device", "tpu"]) == 2
    assert "tpu" in capsys.readouterr().err and not (tmp_path/"drawn").exists()
