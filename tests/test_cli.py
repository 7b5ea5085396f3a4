"""The command `lesa`: what a user sees when things go right and when they go wrong."""

import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from PIL import Image

from lesa_nb.cli import app as cli
from lesa_nb.cli import check
from lesa_nb.cli._network import open_network
from lesa_nb.models.registry import build_classifier, build_detector
from lesa_nb.models.resnet import lesa_resnet50, lesa_wrn50
from lesa_nb.study.small import SmallNet
from lesa_nb.weights.files import save_weights
from lesa_nb.weights.published import to_published

ROOT = Path(__file__).resolve().parent.parent
FACTS = dict(
    arch="small",
    net=dict(term="lesa", classes=3, channels=3, size=64, patch=5),
    task="find the twin",
    mean=0.0,
    std=1.0,
    accuracy=0.5,
    steps=1,
)


def lesa(*words, cwd=None, **env):
    "Run the command in a process of its own, without a display and without a home to write to."
    env = processes.environment(**env)
    for name in ("DISPLAY", "MPLBACKEND", "MPLCONFIGDIR"):
        if name not in words:
            env.pop(name, None)
    return processes.lesa(*words, cwd=cwd, env=env)


def one_line(done, status, *parts):
    "The command ended with this status, and said one line that holds these parts."
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    "A file like those that the demo writes."
    path = tmp_path_factory.mktemp("weights") / "twin_lesa.safetensors"
    torch.manual_seed(0)
    save_weights(SmallNet("lesa"), path, **FACTS)
    return path


@pytest.fixture
def photo(tmp_path):
    "A picture in a folder with an awkward name."
    folder = tmp_path / "my photos; été 写真"
    folder.mkdir()
    path = folder / "a $b$ c;d.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(path)
    return path


def run(capsys, *words):
    "Run the command in this process: status, stdout, stderr."
    status = cli.main([str(word) for word in words])
    return status, *capsys.readouterr()


# ---- help, wrong use, interruption


def test_help_is_fast_and_heavy_packages_stay_out():
    code = (
        "import sys; from lesa_nb.cli import main; status = main(['--help']); "
        "print(status, *sorted({'torch', 'torchvision', 'matplotlib', 'PIL', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.splitlines()[-1] == "0"
    for command in ("demo", "explain", "explore", "check", "train", "eval", "verify-data", "make-data", "export"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["demo", "explain", "explore", "check", "export"])
def test_every_command_has_help(command, capsys):
    status, out, err = run(capsys, command, "--help")
    assert status == 0 and err == "" and f"usage: lesa {command}" in out


@pytest.mark.parametrize("columns", ["0", "1", "7", "30"])
def test_help_ends_in_a_terminal_of_any_width(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    status, out, err = run(capsys, "export", "--help")
    assert status == 0 and err == "" and "--image-size" in out and os.environ["COLUMNS"] == columns


@pytest.mark.parametrize(
    "words, says",
    [
        ("", "name a command: check, demo, eval"),
        ("dmeo", "no command 'dmeo'; did you mean demo?"),
        ("xyz", "no command 'xyz'; there are check, demo"),
        ("train", "say which: lesa train imagenet or lesa train coco"),
        ("train imgnet", "no command 'train imgnet'; did you mean imagenet?"),
        ("eval xyz", "no command 'eval xyz'; there is lesa eval imagenet and lesa eval coco"),
        ("demo --stpes 3", "lesa demo has no option --stpes; did you mean --steps?"),
        ("train imagenet --data x --epoch 3 --batchsize 4", "mean --epochs? and no option --batchsize; did you"),
        ("demo --steps many", "--steps wants a whole number, got 'many'"),
        ("train imagenet --data x --epochs few", "--epochs wants a whole number, got 'few'"),
        ("train coco --data x --lr fast", "--lr wants a number, got 'fast'"),
        ("train imagenet --data x --recipe secret", "--recipe must be one of 'published', 'modern', got 'secret'"),
        ("train imagenet --data", "--data wants a value, found none"),
        ("train imagenet", "lesa train imagenet needs --data DIR; lesa train imagenet --help says more"),
        ("eval imagenet", "needs --data DIR and --weights FILE"),
        ("explain", "lesa explain needs PHOTO"),
        ("verify-data coco a b", "more words than lesa verify-data coco takes: b"),
        ("demo --steps 0", "--steps must be at least 1"),
        ("demo --seed -1", "--seed must be at least 0"),
        ("explain a.jpg --size 0", "--size must be at least 1"),
        ("check --all", "lesa check has no option --all"),
        ("train imagenet --data=", "--data is empty"),
        ("train imagenet --data x --augment no", "--augment must be one of"),
        ("train imagenet --data x --tf3", "no option --tf3; did you mean --tf32?"),
        ("export --weights x --out y.pt2 --image-size a b", "--image-size does not take 'a', 'b'"),
        (f"demo --steps {'9' * 5000}", "--steps wants a number of fewer digits"),
        ("make-data coco -- --size 3", "more words than lesa make-data coco takes: 3"),
    ],
)
def test_wrong_use_is_one_sentence_and_ends_with_2(words, says, capsys):
    status, out, err = run(capsys, *words.split())
    assert (status, out, err.count("\n")) == (2, "", 1) and says in err and err.startswith("lesa: "), err


@pytest.mark.parametrize(
    "words",
    [
        ["train", "imagenet", "--data", "", "--out", "run"],
        ["train", "imagenet", "--data", "x", "--out", ""],
        ["train", "coco", "--data", "x", "--out", " "],
        ["predict", "", "--weights", "x"],
        ["predict", "x", "--weights", "x", "--json", ""],
        ["verify-data", "coco", ""],
        ["make-data", "imagenet", ""],
        ["export", "--weights", "x", "--out="],
    ],
)
def test_an_empty_path_is_not_the_current_folder(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *words)
    assert (status, out, err.count("\n")) == (2, "", 1) and "is empty: expected a name" in err
    assert not list(tmp_path.iterdir())


def test_help_is_given_and_no_sentence(capsys):
    for words in (["--help"], ["train", "--help"], ["train", "coco", "-h"]):
        status, out, err = run(capsys, *words)
        assert (status, err) == (0, "") and out.startswith("usage: lesa")


def test_interrupted_ends_with_130(monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("lesa_nb.study.demo.train_demo", stop)
    status, out, err = run(capsys, "demo")
    assert status == 130 and err.strip() == "lesa: interrupted"


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    def fill(*args, **kwargs):
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr("lesa_nb.study.demo.train_demo", fill)
    status, out, err = run(capsys, "demo")
    assert status == 1 and err.startswith("lesa: not enough memory") and err.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_mistake():
    "As in `lesa --help | head`: nobody reads, nothing is said."
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run([sys.executable, "-m", "lesa_nb.cli", "--help"], stdout=writes, stderr=subprocess.PIPE)
    os.close(writes)
    assert done.stderr == b""


def test_an_error_of_the_system_names_the_file_and_no_number(tmp_path, capsys):
    (tmp_path / "file").touch()
    status, out, err = run(capsys, "demo", "--quick", "--out", tmp_path / "file")
    assert status == 2 and err == f"lesa: {tmp_path / 'file'}: File exists\n"


def test_a_bug_is_not_hidden(monkeypatch):
    def bug(*args, **kwargs):
        raise AttributeError("a bug")

    monkeypatch.setattr("lesa_nb.study.demo.train_demo", bug)
    with pytest.raises(AttributeError):
        cli.main(["demo"])


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.setenv("LESA_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        cli.main(["explain", str(tmp_path / "gone.jpg")])


# ---- check


def test_check_on_this_machine(capsys):
    status, out, err = run(capsys, "check")
    assert status == 0 and out.splitlines()[-1] == "ready"
    versions = {line.split("  ")[0]: line for line in out.splitlines()}
    assert torch.__version__.split("+")[0] in versions["torch"]
    assert "fit together" in versions["torch + torchvision"]


def test_check_names_what_is_missing_or_too_old(monkeypatch, capsys):
    def version(name):
        if name in ("einops", "scikit-learn"):
            raise PackageNotFoundError(name)
        return {"torch": "2.9.1+cpu", "timm": "0.1"}.get(name, "99.0")

    monkeypatch.setattr(check, "version", version)
    status, out, err = run(capsys, "check")
    assert status == 1 and out.splitlines()[-1] == "to be mended: torch, einops"
    assert "pip install einops" in out and "need 2.10 or newer" in out and "pip install 'lesa_nb[demo]'" in out
    (timm,) = (line for line in out.splitlines() if line.startswith("timm"))
    assert "optional" in timm and "too old for `timm.create_model" in timm and "pip install -U 'timm>=" in timm


def test_check_finds_a_torchvision_made_for_another_torch(monkeypatch, capsys):
    import torchvision

    def nms(*args):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", nms)
    monkeypatch.setattr(torch, "__version__", "2.12.0+cpu")
    status, out, err = run(capsys, "check")
    assert status == 1 and "torchvision::nms does not exist" in out
    assert "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu" in out


# ---- explain: what it says and writes


def test_explain_with_the_demos_weights(photo, weights, capsys):
    out = photo.parent / "new folder" / "figure.png"
    status, said, err = run(
        capsys, "explain", photo, "--weights", weights, "--pixel", "89,59", "--out", out, "--size", "70"
    )
    assert status == 0 and err == ""
    assert "90x60, the network sees it at 70x45" in said and "pixel    89,59" in said and "UNTRAINED" not in said
    assert Image.open(out).format == "PNG"


def test_a_figure_that_finds_no_room_leaves_the_old_one(photo, weights, tmp_path, monkeypatch, capsys):
    from matplotlib.figure import Figure

    out = tmp_path / "f.PNG"
    assert run(capsys, "explain", photo, "--weights", weights, "--size", "50", "--out", out)[0] == 0
    before = out.read_bytes()

    def torn(self, path, **_):
        Path(path).write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", torn)
    status, _, err = run(capsys, "explain", photo, "--weights", weights, "--size", "50", "--out", out)
    assert status == 1 and f"{out}: the figure could not be written" in err and "the one before it is intact" in err
    assert out.read_bytes() == before and not [*tmp_path.glob("*.part")]


def test_explain_without_weights_says_untrained(photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    titles = []
    import lesa_nb.look.maps as maps

    draw = maps.explain_figure
    monkeypatch.setattr(maps, "explain_figure", lambda *args, **more: titles.append(args[-1]) or draw(*args, **more))
    status, said, err = run(capsys, "explain", photo, "--size", "64")
    assert status == 0 and said.count("UNTRAINED") == 2 and "UNTRAINED" in titles[0]
    assert (tmp_path / "a $b$ c;d_lesa.png").is_file()


@pytest.mark.parametrize("build, position", [(lesa_resnet50, "flat"), (lesa_wrn50, "factored")])
def test_explain_builds_the_network_that_a_published_file_holds(build, position, photo, tmp_path, capsys):
    torch.manual_seed(0)
    net = build(num_classes=7, image_size=96, position=position)
    path = tmp_path / "theirs.pth"
    torch.save({"net": {f"module.{k}": v for k, v in to_published(net).items()}, "epoch": 3}, path)
    opened = open_network(path)
    for k, v in net.state_dict().items():
        assert opened.model.state_dict()[k].equal(v), k
    status, said, err = run(capsys, "explain", photo, "--weights", path, "--size", "96", "--out", tmp_path / "f.png")
    assert status == 0 and f"{build.__name__} from theirs.pth" in said


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1", "I;16"])
def test_explain_takes_pictures_of_every_mode(mode, weights, tmp_path, capsys):
    path = tmp_path / "picture.tif"
    grey = Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8), (30, 1)))
    (grey if mode == "I;16" else grey.convert("RGB")).convert(
        "RGBA" if mode == "LA" else "RGB" if mode == "CMYK" else mode
    ).convert(mode).save(path if mode not in ("P", "LA", "RGBA", "1") else (path := tmp_path / "picture.png"))
    status, said, err = run(capsys, "explain", path, "--weights", weights, "--size", "50", "--out", tmp_path / "f.png")
    assert status == 0, err


@pytest.mark.fault("P5")
def test_explain_turns_a_picture_upright(weights, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40)).save(tmp_path / "lying.jpg", exif=exif)
    status, said, err = run(
        capsys, "explain", tmp_path / "lying.jpg", "--weights", weights, "--out", tmp_path / "f.png", "--pixel", "39,79"
    )
    assert status == 0 and "lying.jpg: 40x80" in said
    status, said, err = run(
        capsys, "explain", tmp_path / "lying.jpg", "--weights", weights, "--out", tmp_path / "f.png", "--pixel", "79,39"
    )
    assert status == 2 and "40 wide and 80 high" in err


def test_a_page_holds_every_layer_of_a_small_classifier(photo, tmp_path, capsys):
    "A square picture has the most positions; --size is not needed."
    Image.open(photo).convert("RGB").resize((300, 300)).save(tmp_path / "square.png")
    facts = dict(network="small", term="lesa", position="flat", image_size=224)
    model = build_classifier("small", num_classes=2, image_size=224, position="flat")
    save_weights(model, tmp_path / "small.safetensors", arch="classifier", classes=["a", "b"], **facts)
    words = [tmp_path / "square.png", "--weights", tmp_path / "small.safetensors", "--out", tmp_path / "page.html"]
    status, said, err = run(capsys, "explore", *words)
    assert (status, err) == (0, "") and "network  small_resnet" in said and "sees it at 224x224" in said


@pytest.mark.parametrize("command, suffix", [("explain", ".png"), ("explore", ".html")])
def test_a_detector_shows_its_backbone(command, suffix, photo, tmp_path, capsys):
    net = dict(model="mask_rcnn", network="small", num_classes=3, image_size=128)
    torch.manual_seed(0)
    save_weights(build_detector(**net), tmp_path / "found.safetensors", arch="detector", net=net, classes=[*"abc"])
    out = tmp_path / f"figure{suffix}"
    status, said, err = run(capsys, command, photo, "--weights", tmp_path / "found.safetensors", "--out", out)
    assert (status, err) == (0, "") and "mask_rcnn from found.safetensors, its backbone" in said
    assert out.is_file()


# ---- explain: what is wrong with what it was given


class Trap:
    "Unpickled, this makes a file."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def mistakes(photo, weights, tmp_path):
    "Name -> (words, parts of the line)."

    def made(name, write):
        write(tmp_path / name)
        return tmp_path / name

    text = made("text.jpg", lambda p: p.write_text("not a picture"))
    empty = made("empty.jpg", lambda p: p.write_bytes(b""))
    big = tmp_path / "big.jpg"
    Image.effect_noise((400, 400), 80).save(big)
    cut = made("cut.jpg", lambda p: p.write_bytes(big.read_bytes()[:3000]))
    trap = made("trap.pth", lambda p: torch.save({"net": Trap(tmp_path / "it ran")}, p))
    page = made("page.pth", lambda p: p.write_text("<html>not found</html>"))
    half = made("half.safetensors", lambda p: p.write_bytes(weights.read_bytes()[:5000]))
    conv = made(
        "conv.safetensors",
        lambda p: save_weights(SmallNet("conv"), p, **{**FACTS, "net": {**FACTS["net"], "term": "conv"}}),
    )
    bare = made("bare.safetensors", lambda p: save_weights(SmallNet("lesa"), p))
    other = made("other.pth", lambda p: torch.save({"fc.weight": torch.zeros(3, 4)}, p))
    plain = made("plain.pth", lambda p: torch.save(lesa_resnet50(term="conv", num_classes=2).state_dict(), p))
    lacking = {k: v for k, v in to_published(lesa_resnet50(num_classes=2)).items() if "layer4.1.bn1" not in k}
    lacking = made("lacking.pth", lambda p: torch.save(lacking, p))
    return {
        "missing picture": ([tmp_path / "gone.jpg"], ["gone.jpg", "no such file"]),
        "text named .jpg": ([text], ["text.jpg", "not a picture"]),
        "empty picture": ([empty], ["empty.jpg", "empty file"]),
        "truncated picture": ([cut], ["cut.jpg", "broken picture"]),
        "a folder": ([tmp_path], ["a folder"]),
        "pixel outside": ([photo, "--pixel", "90,3"], ["90,3", "90 wide and 60 high"]),
        "pixel negative": ([photo, "--pixel", "0,-1"], ["0,-1", "90 wide and 60 high"]),
        "weights missing": ([photo, "--weights", tmp_path / "gone.pth"], ["gone.pth", "no such file"]),
        "weights a folder": ([photo, "--weights", tmp_path], ["a folder"]),
        "weights a page": ([photo, "--weights", page], ["page.pth"]),
        "weights a picture": ([photo, "--weights", photo], ["a $b$ c;d.png"]),
        "weights that run code": ([photo, "--weights", trap], ["trap.pth", "run code"]),
        "weights cut off": ([photo, "--weights", half], ["half.safetensors"]),
        "weights without LESA": ([photo, "--weights", conv], ["no attention layer"]),
        "weights without metadata": ([photo, "--weights", bare], ["bare.safetensors", "arch"]),
        "weights of something else": ([photo, "--weights", other], ["other.pth", "layer1.0.conv1.weight"]),
        "a plain ResNet": ([photo, "--weights", plain], ["plain.pth", "position table"]),
        "a tensor is missing": ([photo, "--weights", lacking], ["layer4.1.bn1"]),
        "no such layer": ([photo, "--weights", weights, "--layer", "nose"], ["nose", "blocks.1.conv2"]),
        "too small": ([photo, "--weights", weights, "--size", "4"], ["larger --size"]),
        "too large": ([photo, "--weights", weights, "--size", "100000"], ["smaller --size"]),
        "over the picture": ([photo, "--weights", weights, "--out", photo], ["overwrite"]),
        "no such format": ([photo, "--weights", weights, "--out", tmp_path / "f.docx"], ["png"]),
        "out in a file": ([photo, "--weights", weights, "--out", text / "f.png"], ["text.jpg"]),
    }


def test_a_mistake_is_one_line(mistakes, capsys, tmp_path, photo):
    before = photo.read_bytes()
    for name, (words, parts) in mistakes.items():
        status, out, err = run(capsys, "explain", *words)
        assert (status, err.count("\n"), out) == (2, 1, ""), (name, status, out, err)
        for part in ["lesa: ", *parts]:
            assert part in err, (name, err)
    assert not (tmp_path / "it ran").exists()
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    "error, ends", [(PermissionError(13, "Permission denied", "f.png"), 2), (OSError(28, "No space left on device"), 1)]
)
def test_explain_into_a_folder_that_takes_nothing(error, ends, photo, weights, tmp_path, monkeypatch, capsys):
    from matplotlib.figure import Figure

    def refuse(*args, **options):
        raise error

    monkeypatch.setattr(Figure, "savefig", refuse)
    status, out, err = run(capsys, "explain", photo, "--weights", weights, "--out", tmp_path / "f.png")
    assert (status, err.count("\n"), out) == (ends, 1, "") and error.strerror in err


def test_in_a_process_of_its_own_without_home_or_display(photo, weights, tmp_path):
    home = dict(
        HOME="/proc/nowhere",
        XDG_CACHE_HOME="/proc/nowhere",
        XDG_CONFIG_HOME="/proc/nowhere",
        LC_ALL="C",
        PYTHONIOENCODING="ascii",
    )
    words = ["explain", photo, "--weights", weights, "--out", tmp_path / "figure é.png"]
    env = {name: value for name, value in processes.environment(**home).items() if not name.startswith("MPL")}
    command = [sys.executable, "-m", "lesa_nb.cli", *map(str, words)]  # with imports of its own
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "figure é.png").is_file()
    one_line(lesa("explain", tmp_path / "fort; né.jpg", **home), 2, "no such file")
    one_line(lesa("explain", photo, "--weights", weights, "--out", "/proc/nowhere/f.png", **home), 2, "/proc/nowhere")


def test_interrupting_the_process(tmp_path):
    import signal

    process = subprocess.Popen(
        [sys.executable, "-m", "lesa_nb.cli", "demo", "--out", str(tmp_path)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # a shell's background job ignores it
    while not list(
        tmp_path.glob("*.safetensors")
    ):  # the first of the six networks is done: it is in the middle of its work
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "lesa: interrupted" in err and "Traceback" not in err
