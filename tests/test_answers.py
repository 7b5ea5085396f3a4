"""What a network answers, in words, on a figure and on a page; names that differ; colour scales that show something."""

from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from torch import nn

from lesa_nb.cli import main
from lesa_nb.cli._network import distinct_names, drawn_answer
from lesa_nb.data.photos import sample_photo
from lesa_nb.look._page import read_page
from lesa_nb.look._scale import color_range, scale_in_words
from lesa_nb.look.answers import draw_answer, format_answer
from lesa_nb.look.boxes import show_batch, show_contexts, show_scores
from lesa_nb.look.capture import capture_layer
from lesa_nb.look.explorer import explorer
from lesa_nb.look.maps import explain_figure
from lesa_nb.models.registry import build_classifier, build_detector
from lesa_nb.study.small import SmallNet
from lesa_nb.tasks.predict import predict
from lesa_nb.weights.files import save_weights

CLASSES = ["cat", "dog", "猫", "a $b$", "fox"]
BOXES = dict(objects=[dict(name="cat", score=.9, box=[10., 5., 30., 25.]),
                      dict(name="猫", score=.8, box=[0., 0., 4., 4.]),
                      dict(name="cat", score=.7, box=[20., 0., 90., 60.])])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("answers; ü")
    net = dict(network="small", term="lesa", position="factored", image_size=64)
    for seed, folder in enumerate(("one", "two")):
        torch.manual_seed(seed)
        (home / folder).mkdir()
        model = build_classifier(num_classes=5, **net)
        save_weights(model, home / folder / "best.safetensors", arch="classifier", classes=CLASSES, **net)
    torch.manual_seed(0)
    net = dict(model="mask_rcnn", network="small", num_classes=3, image_size=128)
    save_weights(build_detector(**net), home / "detector.safetensors", arch="detector", net=net,
                 classes=["disc", "square", "triangle"], category_ids=[1, 2, 3])
    sample_photo("china").resize((120, 80)).save(home / "photo.png")
    return home


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def lesa(capsys, *words):
    "Run a command in this process and give what it said; it must succeed."
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


# ---- in words


def test_answers_in_words():
    classes = [dict(name="cat", score=.812), dict(name="dog", score=.1)]
    assert format_answer(dict(file="x", classes=classes)) == "cat 81.2%, dog 10.0%"
    assert format_answer(dict(classes=classes[:1], note="or so")) == "cat 81.2%; or so"
    assert format_answer(BOXES) == "cat 0.90, 猫 0.80, cat 0.70"
    assert format_answer(dict(objects=[])) == "no objects" and format_answer(dict(error="torn")) == "torn"


def test_another_answer_of_predict_is_noted():
    cat, dog = (dict(classes=[dict(name=name, score=.6)]) for name in ("cat", "dog"))
    assert drawn_answer([]) is None and drawn_answer([("", BOXES)]) == BOXES
    assert drawn_answer([("", cat), ("", cat)]) == cat
    assert drawn_answer([("", cat), ("", dict(error="torn"))]) == cat
    assert drawn_answer([("", cat), ("", dog)])["note"] == "but lesa predict, which sees it otherwise, says dog 60.0%"


def test_names_are_as_short_as_the_others_allow(tmp_path):
    def names(*paths):
        return distinct_names([tmp_path / path for path in paths])

    assert names("a.pth") == ["a.pth"] and names("x/a.pth", "b.pth") == ["a.pth", "b.pth"]
    assert names("x/a.pth", "y/a.pth", "b.pth") == ["x/a.pth", "y/a.pth", "b.pth"]
    assert names("x/z/a.pth", "y/z/a.pth", "w/a.pth") == ["x/z/a.pth", "y/z/a.pth", "w/a.pth"]
    assert names("a.pth", "a.pth", "x/../a.pth") == ["a.pth (1)", "a.pth (2)", "a.pth (3)"]
    assert names("x/a.pth", "y/a.pth", "x/a.pth") == ["x/a.pth (1)", "y/a.pth", "x/a.pth (2)"]
    assert distinct_names([Path("/a.pth"), Path("/b/a.pth")]) == ["/a.pth", "b/a.pth"] and distinct_names([]) == []


# ---- on a figure


def test_boxes_lie_where_the_objects_are():
    ax = plt.figure().subplots()
    assert draw_answer(ax, BOXES) == "names that this font cannot write"
    assert [patch.get_bbox().extents.tolist() for patch in ax.patches] == [o["box"] for o in reversed(BOXES["objects"])]
    assert [text.get_text() for text in ax.texts] == ["cat 0.70", "0.80", "cat 0.90"]
    assert draw_answer(ax, dict(objects=BOXES["objects"][::2])) == "2 x cat"
    assert draw_answer(ax, dict(classes=[dict(name="a $b$", score=1.)])) == r"a \$b\$ 100.0%"
    long = draw_answer(ax, dict(classes=[dict(name="word " * 20, score=.4)] * 3))
    assert len(long.splitlines()) == 4 and long.endswith(" ...") and max(map(len, long.splitlines())) <= 36


def test_the_figure_says_the_answer_and_the_scale(home):
    torch.manual_seed(0)
    seen = capture_layer(SmallNet("lesa").eval(), torch.rand(1, 3, 40, 60))
    photo = torch.rand(3, 60, 90)
    fig = explain_figure(photo, seen, (3, 4), "of a $b$", answer=dict(classes=[dict(name="cat", score=.5)]))
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert titles[0] == "pixel 4,3\nanswer: cat 50.0%" and fig.get_suptitle() == r"of a \$b\$"
    gate = seen.gate[0].mean(0)
    (said,) = [title for title in titles if "gate, mean" in title]
    assert scale_in_words(gate) in said
    drawn = next(ax for ax in fig.axes if "gate, mean" in ax.get_title()).images[0]
    assert drawn.get_clim() == pytest.approx((gate.min().item(), gate.max().item()))
    assert len(explain_figure(photo, seen, (3, 4), answer=BOXES).axes[0].patches) == 3
    assert explain_figure(photo, seen, (3, 4)).axes[0].get_title() == "pixel 4,3"
    fig.canvas.draw()


@pytest.mark.parametrize("values, ends, words", [
    ((.4998, .5003), (.4998, .5003), "0.49980 to 0.50030"), ((.2, .9), (.2, .9), "0.20 to 0.90"),
    ((.5, .5), (0, 1), "0.50 everywhere"), ((1, 1), (0, 1), "1.00 everywhere"), ((0, 0), (0, 1), "0.00 everywhere"),
    ((.5, .5 + 3e-8), (0, 1), "0.50 everywhere"), ((3, 3), (0, 3), "3.00 everywhere"),
    ((-2, -2), (-2, 0), "-2.00 everywhere"), ((.12345, .12348), (.12345, .12348), "0.123450 to 0.123480")])
def test_a_scale_on_which_something_can_be_seen(values, ends, words):
    map_HW = torch.tensor([values, values[::-1]], dtype=torch.float64)
    assert color_range(map_HW) == pytest.approx(ends) and scale_in_words(map_HW) == words


def test_a_gate_that_is_the_same_everywhere_is_no_picture_of_rounding():
    class Half(nn.Module):
        def forward(self, local, context):
            return torch.full_like(context, .5)

    net = SmallNet("lesa").eval()
    for block in net.blocks:
        block.conv2.gate = Half()
    fig = explain_figure(torch.rand(3, 40, 60), capture_layer(net, torch.rand(1, 3, 40, 60)), (3, 4))
    ax = next(ax for ax in fig.axes if "gate, mean" in ax.get_title())
    assert ax.get_title().endswith("0.50 everywhere") and ax.images[0].get_clim() == (0, 1)


# ---- on a page


def test_the_page_carries_the_answers():
    nets = {"a": SmallNet("lesa").eval(), "b": SmallNet("conv").eval()}
    answers = dict(a=BOXES, b=dict(classes=[dict(name="caf\udce9 </script>", score=.5)]))
    html = explorer(torch.rand(3, 60, 90), nets, torch.rand(1, 3, 60, 90), answers=answers).html
    first, second = read_page(html)[0]["networks"]
    assert first["answer"] == format_answer(BOXES) and second["boxes"] == []
    assert first["boxes"][1] == dict(box=[0., 0., 4., 4.], text="猫 0.80")
    assert second["answer"] == "caf? </script> 50.0%" and html.count("</script>") == 2
    plain = read_page(explorer(torch.rand(3, 60, 90), nets, torch.rand(1, 3, 60, 90)).html)[0]
    assert all("answer" not in network for network in plain["networks"])


# ---- the commands


def test_explain_answers_as_predict_does(home, tmp_path, capsys):
    weights, photo = home / "one" / "best.safetensors", home / "photo.png"
    said = lesa(capsys, "explain", photo, "--weights", weights, "--out", tmp_path / "fig.png")
    asked = predict(weights, photo, top=3)[0]
    assert f"answer   {format_answer(asked)} (as lesa predict sees it)" in said
    assert said.count("answer   ") == 2 and "(the whole picture, which the maps are of)" in said
    assert Image.open(tmp_path / "fig.png").format == "PNG"
    untrained = lesa(capsys, "explain", photo, "--size", "64", "--out", tmp_path / "fig.png")
    assert "answer  " not in untrained


def test_explain_takes_detectors(home, tmp_path, capsys, monkeypatch):
    import lesa_nb.look.maps as maps

    drawn, draw = [], maps.explain_figure
    monkeypatch.setattr(maps, "explain_figure", lambda *args, **more: drawn.append(more) or draw(*args, **more))
    words = ["--weights", home / "detector.safetensors", "--out", tmp_path / "fig.png"]
    said = lesa(capsys, "explain", home / "photo.png", *words, "--threshold", "0.01")
    asked = predict(home / "detector.safetensors", home / "photo.png", threshold=.01)[0]
    assert asked["objects"] and f"answer   {format_answer(asked)} (what scores at least 0.01" in said
    assert [o["box"] for o in drawn[0]["answer"]["objects"]] == [o["box"] for o in asked["objects"]]
    said = lesa(capsys, "explain", home / "photo.png", *words, "--threshold", "1")
    assert "no objects (what scores at least 1," in said


def test_boxes_follow_a_picture_that_is_reduced(home, tmp_path, monkeypatch):
    from lesa_nb.cli import _network
    from lesa_nb.data.photos import open_photo

    path = tmp_path / "large.png"
    Image.open(home / "photo.png").resize((1200, 800)).save(path)
    photo = open_photo(path, max_pixels=100_000)
    network = _network.open_network(home / "detector.safetensors")
    (_, found), = _network.network_answers(network, photo, path, torch.zeros(3, 8, 8), .01)
    asked = predict(home / "detector.safetensors", path, threshold=.01)[0]
    scale = torch.tensor(photo.image.size * 2) / torch.tensor([1200, 800] * 2)
    for mine, theirs in zip(found["objects"], asked["objects"], strict=True):
        torch.testing.assert_close(torch.tensor(mine["box"]), torch.tensor(theirs["box"]) * scale)
    assert scale.max() < .6


def test_explore_calls_each_network_by_a_name_of_its_own(home, tmp_path, capsys):
    files = [home / "one" / "best.safetensors", home / "two" / "best.safetensors", home / "one" / "best.safetensors"]
    words = ["--weights", *files, home / "detector.safetensors", "--size", "64", "--mean", "--threshold", "0.01"]
    said = lesa(capsys, "explore", home / "photo.png", *words, "--out", tmp_path / "page.html")
    data, views = read_page((tmp_path / "page.html").read_text(encoding="utf-8"))
    names = [network["name"] for network in data["networks"]]
    assert len(set(names)) == len(views) == 4 and all(f"network  {name}, sees it" in said for name in names)
    for name, part in zip(names, ("one/best.safetensors (1)", "two/best", "one/best.safetensors (2)", "detector")):
        assert part in name
    answers = [network["answer"] for network in data["networks"]]
    assert answers[0] == answers[2] != answers[1] and data["networks"][3]["boxes"] and not data["networks"][0]["boxes"]


@pytest.mark.parametrize("command", ["explain", "explore"])
def test_a_threshold_that_no_score_can_be_is_refused(home, command, capsys):
    assert main([command, str(home / "photo.png"), "--threshold", "1.5"]) == 2
    assert "--threshold must lie in 0..1, got 1.5" in capsys.readouterr().err


def test_names_of_classes_start_no_formula_on_figures_of_detectors():
    image, names = torch.rand(3, 32, 32), ["$a_$", "b"]
    target = dict(boxes=torch.tensor([[1., 1., 20., 20.]]), labels=torch.tensor([1]))
    scores = SimpleNamespace(mask=None, class_ap=lambda kind: dict.fromkeys(names, .5),
                             curve=lambda kind, threshold: ([0., 1.], [1., 0.]))
    figures = (show_batch([image], [target], names), show_scores(scores),
               show_contexts(image, target["boxes"], torch.rand(1, 4, 4), names[:1]))
    for fig in figures:
        fig.canvas.draw()  # a formula that is none raises here
        assert any(r"\$a_\$" in text.get_text() for text in fig.findobj(Text))
        plt.close(fig)
