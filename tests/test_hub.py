"""Folders and repositories of the Hugging Face Hub: there and back to the bit, and an honest card."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import nn
from torchvision import models

import lesa_nb
from lesa_nb.models.registry import build_classifier, build_detector
from lesa_nb.weights import _hub_mixin
from lesa_nb.weights.files import save_weights
from lesa_nb.weights.load import Loaded, as_loaded, load
from lesa_nb.weights.start import start_metadata

NAMES = ["ant", "bee", "Käfer | 甲虫"]
TOLD = dict(
    recipe=dict(name="modern", epochs=4, ema=0.0), epoch=3, seed=5, scores=dict(top1=71.25, loss=.5),
    start=dict(file="a.pth", sha256="0123456789abcdef0"),
)  # fmt: skip


def built(build=build_classifier, **options):
    torch.manual_seed(0)
    return build(num_classes=3, **options)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(tensor.equal(b[key]) for key, tensor in a.items())


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    "Whoever asks for an address is refused."
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: pytest.fail("a test asked for the network"))


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (build_classifier, dict(network="small")),
        (build_classifier, dict(network="small", term="attention", image_size=(64, 96))),
        (build_classifier, dict(network="resnet50", image_size=64)),
        (build_classifier, dict(network="graft:resnet18", image_size=64)),
        (build_detector, dict(network="small")),
        (build_detector, dict(network="small", keep_ratio=True, masks=False, image_size=96)),
        (build_detector, dict(network="small", model="htc", semantic=False)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_there_and_back(build, options, tmp_path):
    "What a builder returned, its names, and once more what `load` returned: equal to the bit."
    network = built(build, **options)
    lesa_nb.save_pretrained(network, tmp_path / "one", classes=NAMES, **TOLD)
    for opened in (lesa_nb.load(tmp_path / "one"), lesa_nb.from_pretrained(tmp_path / "one")):
        assert isinstance(opened, Loaded) and same(opened.model, network) and opened.classes == NAMES
        assert all(opened.metadata[key] == value for key, value in TOLD.items()) and not opened.model.training
    for name, value in options.items():
        found = opened.metadata.get("net", opened.metadata)[name]
        assert found == (list(value) if isinstance(value, tuple) else value)
    lesa_nb.save_pretrained(opened, tmp_path / "two")
    again = load(tmp_path / "two")
    assert same(again.model, network) and again.metadata == opened.metadata
    assert {file.name for file in (tmp_path / "two").iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_wrappers_in_any_order():
    network = built(network="small")
    for wrapped in (torch.compile(nn.DataParallel(network)), nn.DataParallel(torch.compile(network))):
        assert as_loaded(wrapped, classes=NAMES).model is network


def test_a_file_of_weights_and_a_control(tmp_path):
    control = built(network="small", term="conv")
    told = dict(arch="classifier", network="small", term="conv", position="factored", image_size=64)
    with pytest.raises(ValueError, match="no position table of a LESA layer"):
        lesa_nb.save_pretrained(control, tmp_path / "hub", classes=NAMES)
    assert not (tmp_path / "hub").exists()
    save_weights(control, tmp_path / "file.safetensors", classes=NAMES, **told)
    lesa_nb.save_pretrained(tmp_path / "file.safetensors", tmp_path / "hub")
    lesa_nb.save_pretrained(control, tmp_path / "hub2", classes=NAMES, **told)
    assert same(load(tmp_path / "hub").model, control) and same(load(tmp_path / "hub2").model, control)


def test_predictions_are_the_same(tmp_path):
    network, picture = built(network="small"), Image.effect_noise((90, 70), 80)
    lesa_nb.save_pretrained(network, tmp_path, classes=NAMES)
    assert lesa_nb.predict(str(tmp_path), picture) == lesa_nb.predict(as_loaded(network, classes=NAMES), picture)
    done = subprocess.run(
        [sys.executable, "-c", "import sys, lesa_nb; sys.modules['huggingface_hub'] = None; "
         f"print(lesa_nb.load({str(tmp_path)!r}).kind)\n"
         f"try: lesa_nb.save_pretrained({str(tmp_path)!r}, 'x')\nexcept ModuleNotFoundError as e: print(e)"],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "classifier",
        "folders and repositories of the Hugging Face Hub need its package: pip install 'lesa_nb[hub]'",
    ], done.stderr


# ---- the card


def rows(folder):
    text = (Path(folder) / "README.md").read_text(encoding="utf-8")
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and line != "| | |"]
    return {cell[0]: " | ".join(cell[1:]) for cell in cells}


def test_the_card_of_a_classifier(tmp_path):
    lesa_nb.save_pretrained(built(network="small"), tmp_path, classes=[f"class {i}" for i in range(3)], **TOLD)
    told = rows(tmp_path)
    assert told["network"] == "a small LESA network" and told["classes"] == "3: class 0, class 1, class 2"
    assert told["what looks around"] == "lesa" and told["image size"] == "64"
    assert told["recipe"] == "modern: epochs 4" and told["seed"] == "5"
    assert told["started from"] == "a.pth (SHA-256 0123456789ab...)"
    assert told["top-1 accuracy, %, on the run's own validation images"] == "71.25"
    assert "top-5 accuracy, %, on the run's own validation images" not in told and told["loss"] == "0.5"
    assert told["convolution and plain attention, same recipe and data"] == "not run"
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "lesa_nb" and card.data.pipeline_tag == "image-classification"
    assert "lesa" in card.data.tags and card.data.license is None


def test_a_card_says_not_run_where_nothing_was_measured(tmp_path):
    lesa_nb.save_pretrained(build_classifier("small", num_classes=7), tmp_path / "a", license="apache-2.0")
    told = rows(tmp_path / "a")
    assert [told[f"top-{n} accuracy, %, on the run's own validation images"] for n in (1, 5)] == ["not run", "not run"]
    assert told["recipe"] == told["started from"] == "not said"
    assert ModelCard.load(tmp_path / "a" / "README.md").data.license == "apache-2.0"
    lesa_nb.save_pretrained(built(build_detector, network="small"), tmp_path / "b", scores={"box AP": 31.5})
    told = rows(tmp_path / "b")
    assert told["box AP, %, on the run's own validation images"] == "31.50"
    assert told["mask AP, %, on the run's own validation images"] == "not run" and told["network"] == "Mask R-CNN"
    lesa_nb.save_pretrained(built(build_detector, network="small", masks=False), tmp_path / "c")
    assert not any(name.startswith("mask AP") for name in rows(tmp_path / "c"))
    assert ModelCard.load(tmp_path / "c" / "README.md").data.pipeline_tag == "object-detection"


def test_a_card_is_written_anew_unless_it_is_somebody_elses(tmp_path):
    network = built(network="small")
    lesa_nb.save_pretrained(network, tmp_path, scores=dict(top1=10.0))
    lesa_nb.save_pretrained(network, tmp_path, scores=dict(top1=20.0))
    assert rows(tmp_path)["top-1 accuracy, %, on the run's own validation images"] == "20.00"
    (tmp_path / "README.md").write_text("mine")
    lesa_nb.save_pretrained(network, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


# ---- repositories: what would go over the network goes to a folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    "A hub in a folder."
    place, asked = tmp_path / "hub", []

    class Api:
        def __init__(self, token=None):
            asked.append(token)

        def create_repo(self, repo_id, private=None, exist_ok=False):
            (place / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            return type("Repo", (), dict(repo_id=repo_id))

        def upload_folder(self, *, repo_id, folder_path, **more):
            shutil.copytree(folder_path, place / repo_id, dirs_exist_ok=True)
            asked.append(more)
            return f"https://hub/{repo_id}/commit/1"

    def download(repo_id, filename, **more):
        if not (place / repo_id / filename).exists():
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"cannot find {filename}\nand more")
        return str(place / repo_id / filename)

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", download)
    monkeypatch.setattr(_hub_mixin, "hf_hub_download", download)
    return asked


def test_push_and_fetch(hub):
    network = built(network="small")
    address = lesa_nb.push_to_hub(
        network, "me/lesa-bees", classes=NAMES, private=True, token="secret", create_pr=True, **TOLD
    )
    assert address == "https://hub/me/lesa-bees/commit/1"
    assert hub[0] == "secret" and hub[1]["create_pr"] and hub[1]["commit_message"] == "A LESA network"
    opened = lesa_nb.from_pretrained("me/lesa-bees", revision="main", token="secret")
    assert same(opened.model, network) and opened.classes == NAMES and opened.metadata["scores"] == TOLD["scores"]


def test_what_cannot_be_fetched(hub, tmp_path):
    with pytest.raises(ConnectionError, match=r"me/nothing: no network could be fetched \(cannot find.*hf auth"):
        lesa_nb.from_pretrained("me/nothing")
    for name in ("nothing", "a/b/c", "runs/lesa/best.safetensors"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such folder, and no name of a repository"):
            lesa_nb.from_pretrained(name)


# ---- other doors


def test_timm_opens_such_a_folder(tmp_path):
    torch.manual_seed(0)
    network = lesa_nb.lesa_resnet50(num_classes=3, image_size=64, position="factored").eval()
    lesa_nb.save_pretrained(network, tmp_path, classes=NAMES)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 64)
    assert theirs(x).equal(network(x)) and list(theirs.pretrained_cfg["label_names"]) == NAMES
    assert theirs.pretrained_cfg["input_size"][1:] == [64, 64] and theirs.num_classes == 3
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["metadata"]["classes"] == NAMES and config["library_name"] == "lesa_nb"


def test_a_run_can_start_from_such_a_folder(tmp_path):
    lesa_nb.save_pretrained(built(network="small"), tmp_path / "hub")
    assert start_metadata(tmp_path / "hub")["start"]["sha256"] == start_metadata(
        tmp_path / "hub" / "model.safetensors")["start"]["sha256"]


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="a folder without model.safetensors, not a file of weights"):
        load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="expected a folder to write the network into, found a file"):
        lesa_nb.save_pretrained(built(network="small"), tmp_path / "file")


@pytest.mark.parametrize(
    ("network", "told", "message"),
    [
        (models.resnet18(), {}, "no LESA classification network"),
        (nn.Linear(2, 2), {}, "nothing says what it is"),
        (nn.Linear(2, 2), dict(arch="tree"), "no network of a known kind.*'tree'"),
        (nn.Linear(2, 2), dict(arch="classifier"), "do not describe a network that can be built"),
        (lesa_nb.lesa_resnet50(image_size=64, base=8), {}, "weights of another network"),
        (lesa_nb.lesa_resnet50(image_size=64, strides=(1, 2, 1, 1)), {}, "computes something else"),
    ],
    ids=["torchvision", "linear", "tree", "no details", "narrow", "strides"],
)
def test_what_could_not_be_built_again_is_refused_before_anything_is_written(network, told, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        lesa_nb.save_pretrained(network, tmp_path / "hub", **told)
    assert not (tmp_path / "hub").exists()


def test_wrapped_networks(tmp_path):
    network = built(network="small")
    for wrapped in (nn.DataParallel(network), torch.compile(network)):
        lesa_nb.save_pretrained(wrapped, tmp_path)
        assert same(load(tmp_path).model, network)
