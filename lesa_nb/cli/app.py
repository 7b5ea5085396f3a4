"""The command `lesa`: try it out, train, look into a photograph, check the machine."""

__all__ = ['app', 'DESCRIPTION', 'GROUPS', 'REQUIRED', 'OPTIONAL', 'Part', 'check', 'demo', 'explain', 'explore', 'main']

import logging
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro
from tyro.conf import Positional, arg
from tyro.extras import SubcommandApp

from lesa_nb.cli import commands
from lesa_nb.cli.commands import UsageError, is_chief
from lesa_nb.engine.signals import Stopped

app = SubcommandApp()

DESCRIPTION = "LESA: locally enhanced self-attention, to learn from and to use. Every command has its own --help."

#: the commands of two words: first word -> what it does, and the function behind each second word
GROUPS = {
    "train": ("Train a network or a detector; --resume auto goes on where a run was stopped.", dict(imagenet=commands.train_imagenet, coco=commands.train_coco)),
    "eval": ("Score weights on validation pictures.", dict(imagenet=commands.eval_imagenet, coco=commands.eval_coco)),
    "verify-data": ("Check a folder before training on it.", dict(imagenet=commands.verify_imagenet, coco=commands.verify_coco_folder)),
    "make-data": ("Draw a small folder of pictures, to try everything on.", dict(imagenet=commands.make_imagenet, coco=commands.make_coco_folder))}

for _first, (_help, _functions) in GROUPS.items():
    _group = SubcommandApp()
    for _second, _function in _functions.items(): _group.command(_function, name=_second)
    app.command(_group, name=_first, help=_help)
app.command(commands.export)
app.command(commands.export_testdev, name="export-testdev")

class Part(NamedTuple):
    "One line of the table."
    name: str
    found: str # a version, or what is there
    state: str # "ok", "optional" (missing, but not needed) or "broken"
    note: str = "" # what it is for, or what to do

#: package -> smallest version that will do
REQUIRED = {"torch": "2.10", "torchvision": "0.25", "numpy": "", "einops": "", "jaxtyping": "", "matplotlib": "", "pillow": "",
            "safetensors": "", "torchmetrics": "1.9", "tqdm": "", "tyro": ""}
#: package -> what needs it, and what to install
OPTIONAL = {"scikit-learn": ("real pictures for `lesa demo`", "lesa_nb[demo]"),
            "tensorboard": ("TensorBoard files beside the log of a run", "lesa_nb[train]"),
            "faster-coco-eval": ("training and scoring detectors", "lesa_nb[coco]"),
            "pycocotools": ("a second opinion on COCO scores", "lesa_nb[coco]"),
            "onnx": ("`lesa export` to ONNX", "lesa_nb[export]"),
            "jupyterlab": ("reading and running the notebooks", "lesa_nb[dev]"),
            "nbdev": ("turning notebooks into the package", "lesa_nb[dev]"),
            "pytest": ("running the tests", "lesa_nb[dev]")}

def _numbers(text):
    "The leading numbers of a version: '2.10.0+cpu' -> (2, 10)."
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2] if part.isdigit())

def _packages():
    "What is installed, what is too old, and what is missing."
    try: yield Part("lesa_nb", version("lesa_nb"), "ok")
    except PackageNotFoundError: yield Part("lesa_nb", "not installed", "optional", "used from its folder; to install it there: pip install -e .")
    old = sys.version_info < (3, 10)
    yield Part("python", platform.python_version(), *(("broken", "need 3.10 or newer") if old else ("ok",)))
    for name, floor in REQUIRED.items():
        try: found = version(name)
        except PackageNotFoundError: yield Part(name, "missing", "broken", f"pip install '{name}>={floor}'" if floor else f"pip install {name}")
        else:
            old = _numbers(found) < _numbers(floor)
            yield Part(name, found, *(("broken", f"need {floor} or newer: pip install -U '{name}>={floor}'") if old else ("ok",)))
    for name, (purpose, extra) in OPTIONAL.items():
        try: yield Part(name, version(name), "ok", purpose)
        except PackageNotFoundError: yield Part(name, "missing", "optional", f"{purpose}: pip install '{extra}'")

def _pair():
    "Do torch and torchvision fit together? Only a real call of a compiled operation tells."
    try:
        import torch
        import torchvision
        torchvision.ops.nms(torch.tensor([[0., 0., 1., 1.]]), torch.ones(1), 0.5)
    except Exception as error: # a torch without its libraries fails in many ways
        index = " --index-url https://download.pytorch.org/whl/cpu" if "+cpu" in getattr(sys.modules.get("torch"), "__version__", "") else ""
        return Part("torch + torchvision", "do not fit", "broken",
                    f"{' '.join(str(error).split())}; install them together: pip install --force-reinstall torch torchvision{index}")
    return Part("torch + torchvision", "fit together", "ok")

def _machine():
    "Processor and GPUs."
    try: import torch
    except Exception: return # already reported
    yield Part("CPU", f"{os.cpu_count()} cores", "ok", f"torch uses {torch.get_num_threads()} threads")
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        bf16 = "with" if gpu.major >= 8 else "without"
        yield Part(f"GPU {i}", gpu.name, "ok", f"{gpu.total_memory/2**30:.0f} GiB, {bf16} bfloat16")
    if not torch.cuda.device_count(): yield Part("GPU", "none", "optional", "everything runs on the CPU, only slower")

@app.command
def check() -> int:
    """Check the machine: versions, whether torch and torchvision fit together, GPUs, what is missing and how to install it.

    Ends with status 0 if everything needed is there, else with 1.
    """
    parts = [*_packages(), _pair(), *_machine()]
    widths = [max(len(part[i]) for part in parts) for i in range(3)]
    for part in parts: print("  ".join([*(text.ljust(w) for text, w in zip(part, widths)), part.note]).rstrip())
    broken = [part.name for part in parts if part.state == "broken"]
    print(f"\nto be mended: {', '.join(broken)}" if broken else "\nready")
    return 1 if broken else 0

def _progress(losses, name, steps):
    "A progress bar around the losses of one run."
    from tqdm import tqdm
    with tqdm(total=steps, desc=name, unit="step") as bar:
        for loss in losses:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
            yield loss

@app.command
def demo(
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("out/demo"),
    steps: int = 400,
    seed: int = 0,
    quick: bool = False,
):
    """Train convolution, plain attention and LESA on digits and on generated pictures, and show what LESA looks at.

    Takes some minutes on two CPU cores. Writes metrics.json, learning_curves.png, explain.png, explain_twin.png and the weights.

    Args:
        out: Where everything is written.
        steps: Training steps of every network on both tasks.
        seed: Decides first weights and pictures; another seed, another run.
        quick: Only see whether everything runs: 4 steps of 16 pictures. Nothing is learned.
    """
    if steps < 1: raise UsageError(f"--steps must be at least 1, got {steps}")
    if seed < 0: raise UsageError(f"--seed must be at least 0, got {seed}")
    from lesa_nb.study import small as study
    few = dict(steps=4, batch_size=16, valid=64) if quick else dict(steps=steps)
    metrics = study.demo(out, seed=seed, watch=_progress, **few)
    print(f"\n{study.table(metrics['results'])}\n")
    if quick: print("a quick run: nothing was learned, these accuracies say only that everything runs")
    else: print("\n".join(metrics["findings"]))
    print(f"{metrics['seconds']:.0f} s; everything is in {out}")

class _Network(NamedTuple):
    "A network with LESA layers, and what one must know to show it a photograph."
    model: "torch.nn.Module"
    says: str # what it is, for the output and the figure
    channels: int # of the pictures that it takes
    mean: tuple
    std: tuple
    stride: int # pixels to one position of its LESA layers
    size: int # longer side of a picture if the user does not choose
    pair_floats: int # numbers that it holds at once for each pair of positions

def _untrained():
    import torch

    from lesa_nb.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
    from lesa_nb.models.resnet import lesa_resnet50
    torch.manual_seed(0)
    return _Network(lesa_resnet50().eval(), "UNTRAINED lesa_resnet50 (random weights, seed 0)", 3, IMAGENET_MEAN, IMAGENET_STD, 16, 448, 120)

def _classifier(path):
    "A classification network: of the authors, or trained by `lesa train`."
    from lesa_nb.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
    from lesa_nb.models.registry import CLASSIFIERS
    from lesa_nb.tasks.classify import load_classifier
    model, facts = load_classifier(path)
    says = f"{CLASSIFIERS[facts['network']].__name__} from {Path(path).name}"
    if facts["term"] != "lesa": says += f", term {facts['term']}"
    if facts.get("scores"): says += f", top-1 {facts['scores']['top1']:.1f} %"
    patch = 8 if facts["network"] == "small" else 16
    return _Network(model, says, 3, IMAGENET_MEAN, IMAGENET_STD, patch, 2*facts["image_size"], dict(small=30, resnet50=120, wrn50=200)[facts["network"]])

def _ours(path):
    "A small network that `lesa demo` wrote."
    from lesa_nb.study.small import TERM_NAMES, load_small
    model, facts = load_small(path)
    net = facts["net"]
    says = f"small {TERM_NAMES[net['term']]} network trained {facts['steps']} steps on {facts['task']}, {facts['accuracy']:.1%} right there"
    return _Network(model, says, net["channels"], (facts["mean"],), (facts["std"],), net["patch"], 32*net["patch"], 30)

def _open_network(weights):
    "The network in a file, whichever kind of file it is."
    if weights is None: return _untrained()
    if not weights.exists(): raise FileNotFoundError(f"{weights}: no such file of weights")
    if weights.is_dir(): raise ValueError(f"{weights}: a folder, not a file of weights")
    with open(weights, "rb") as file: head = file.read(9)
    ours = weights.suffix == ".safetensors" or head[8:] == b"{" # safetensors: eight bytes of length, then JSON
    if not ours: return _classifier(weights)
    from lesa_nb.engine.loop import read_facts
    return _classifier(weights) if read_facts(weights).get("arch") == "classifier" else _ours(weights)

def _pixel(text, picture):
    "Read 'X,Y' as row and column; the middle of the picture if nothing was chosen."
    from lesa_nb.look.maps import cell_of
    if text is None: return picture.height//2, picture.width//2
    try: column, row = (int(part) for part in text.split(","))
    except ValueError: raise UsageError(f"--pixel wants two whole numbers X,Y, got {text!r}") from None
    cell_of((row, column), (picture.height, picture.width), (1, 1)) # refuses a pixel outside the picture
    return row, column

def _new_file(out, photo, suffix, formats, says):
    "Where a result goes: a name of a kind that can be written, and never the photograph itself."
    out = out or Path(f"{photo.stem}_lesa{suffix}")
    if out.is_dir(): raise ValueError(f"{out}: a folder; --out wants the name of a file")
    if not out.suffix: out = out.with_suffix(suffix)
    if out.suffix[1:].lower() not in formats: raise ValueError(f"{out}: {says}")
    if out.exists() and out.samefile(photo): raise ValueError(f"{out}: this would overwrite the picture; choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out

def _figure_file(out, photo):
    "Where a figure goes: any format that matplotlib writes."
    from matplotlib.backend_bases import FigureCanvasBase
    formats = FigureCanvasBase.get_supported_filetypes()
    return _new_file(out, photo, ".png", formats, f"figures can be written as {', '.join(sorted(formats))}")

def _free_memory():
    "Bytes that are free, as far as the system tells."
    try: lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError: return 8*2**30
    return next((1024*int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 8*2**30)

def _shown_to(network, picture, size):
    "The picture as the network wants it, in whole patches; refused if too small for it, or too large for this machine."
    import torch

    from lesa_nb.data.pictures import fitted, photo_tensor
    if size < network.stride: raise ValueError(f"one patch of this network has {network.stride}x{network.stride} pixels: choose a larger --size than {size}")
    width, height = fitted(picture.size, size, network.stride)
    positions = height*width//network.stride**2
    need, free = 4*network.pair_floats*positions**2, _free_memory()
    if need > free:
        raise ValueError(f"at {width}x{height} each of {positions:,} positions looks at all others, which takes about {need/2**30:.0f} GiB, "
                         f"but {free/2**30:.0f} GiB are free: choose a smaller --size")
    x_CHW = photo_tensor(picture, size, network.stride)
    if network.channels == 1: x_CHW = x_CHW.mean(0, keepdim=True)
    mean_C11, std_C11 = (torch.tensor(numbers)[:, None, None] for numbers in (network.mean, network.std))
    return (x_CHW - mean_C11)/std_C11

@app.command
def explain(
    photo: Annotated[Positional[Path], arg(metavar="PHOTO")],
    weights: Annotated[Path | None, arg(metavar="FILE")] = None,
    pixel: Annotated[str | None, arg(metavar="X,Y")] = None,
    out: Annotated[Path | None, arg(metavar="FILE.png")] = None,
    layer: Annotated[str | None, arg(metavar="NAME")] = None,
    size: Annotated[int | None, arg(metavar="N")] = None,
):
    """Draw what one LESA layer makes of a photograph: local term, gate, and what one pixel attends to.

    Args:
        photo: Any picture. Turned pictures, grey ones, CMYK, palettes and transparency are understood.
        weights: A .safetensors written by `lesa demo`, or a .pth of the authors. Without it the network is untrained.
        pixel: Column and row in the picture, counted from 0 at the top left. Default: its middle.
        out: Where the figure goes. Default: the picture's name with _lesa.png, in the current folder.
        layer: The LESA layer to look into. Default: the last one.
        size: Longer side in pixels at which the network sees the picture, rounded to whole patches. The aspect ratio stays.
    """
    if size is not None and size < 1: raise UsageError(f"--size must be at least 1, got {size}")
    from lesa_nb.data.pictures import open_photo, photo_tensor
    from lesa_nb.look.maps import explain_figure, lesa_layers, look
    picture = open_photo(photo)
    row, column = _pixel(pixel, picture)
    out = _figure_file(out, photo)
    network = _open_network(weights)
    x_CHW = _shown_to(network, picture, size or network.size)
    seen = look(network.model, x_CHW[None], layer)

    import matplotlib.pyplot as plt # last: what goes wrong before needs no plotting
    shape = f"{x_CHW.shape[2]}x{x_CHW.shape[1]}"
    fig = explain_figure(photo_tensor(picture), seen, (row, column), f"{network.says}; layer {seen.layer}, picture seen at {shape}")
    fig.savefig(out, dpi=110)
    plt.close(fig)
    print(f"network  {network.says}")
    print(f"picture  {photo}: {picture.width}x{picture.height}, the network sees it at {shape}")
    print(f"layer    {seen.layer} of {', '.join(lesa_layers(network.model))}: {seen.size[1]}x{seen.size[0]} positions")
    print(f"pixel    {column},{row}" + ("" if pixel else " (the middle; choose another with --pixel X,Y)"))
    print(f"figure   {out}")
    if weights is None: print("UNTRAINED: the maps show what random weights do, not what a network has learned. Choose --weights.")

@app.command
def explore(
    photo: Annotated[Positional[Path], arg(metavar="PHOTO")],
    weights: Annotated[tuple[Path, ...], arg(metavar="FILE")] = (),
    pixel: Annotated[str | None, arg(metavar="X,Y")] = None,
    out: Annotated[Path | None, arg(metavar="FILE.html")] = None,
    layer: Annotated[str | None, arg(metavar="NAME")] = None,
    size: Annotated[int | None, arg(metavar="N")] = None,
    mean: bool = False,
):
    """Write a page on which every pixel of a photograph can be clicked: what each head attends to from there, gate and local term.

    One file, for any browser, without server or network.

    Args:
        photo: Any picture. Turned pictures, grey ones, CMYK, palettes and transparency are understood.
        weights: A .safetensors of `lesa demo` or `lesa train`, or a .pth of the authors; several for networks side by side. Without it the network is untrained.
        pixel: Column and row where the page starts, counted from 0 at the top left. Default: the middle.
        out: Where the page goes. Default: the picture's name with _lesa.html, in the current folder.
        layer: The only layer to show. Default: all, to choose from on the page.
        size: Longer side in pixels at which the networks see the picture, rounded to whole patches. The aspect ratio stays.
        mean: Keep only the mean of the heads: smaller files, larger pictures.
    """
    if size is not None and size < 1: raise UsageError(f"--size must be at least 1, got {size}")
    from lesa_nb.data.pictures import open_photo
    from lesa_nb.look.explorer import explorer
    picture = open_photo(photo)
    row_column = _pixel(pixel, picture)
    out = _new_file(out, photo, ".html", ("html", "htm"), "a page is written as .html")
    networks, images = {}, {}
    for file in weights or (None,):
        network = _open_network(file)
        name = network.says if network.says not in networks else f"{network.says} ({file})"
        networks[name], images[name] = network.model, _shown_to(network, picture, size or network.size)[None]
    page = explorer(picture, networks, images, layers=layer and [layer], heads=not mean, pixel=row_column, title=photo.name)
    page.save(out)
    print(f"picture  {photo}: {picture.width}x{picture.height}")
    for name, x_BCHW in images.items(): print(f"network  {name}, sees it at {x_BCHW.shape[3]}x{x_BCHW.shape[2]}")
    print(f"page     {out}, {out.stat().st_size/1e6:.1f} MB: open it in a browser")
    if not weights: print("UNTRAINED: the maps show what random weights do, not what a network has learned. Choose --weights.")

_MISTAKES = (ValueError, OSError, ModuleNotFoundError, FloatingPointError, MemoryError) # what a user can do wrong

def main(
    argv: list[str] | None = None, # words after `lesa`; None: those of the command line
) -> int: # exit status: 0 fine, 1 a mistake in the matter, 2 in the use, 130 interrupted, 143 taken away
    "Run one command; a mistake becomes one line on stderr. LESA_DEBUG=1 shows the traceback instead."
    if "matplotlib" not in sys.modules: os.environ["MPLBACKEND"] = "Agg" # figures go to files: no display is needed
    logging.getLogger("matplotlib").setLevel(logging.ERROR) # it can do without a home folder; no need to say so
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"): stream.reconfigure(errors="backslashreplace") # a terminal that lacks a letter
    try:
        return app.cli(args=argv, prog="lesa", description=DESCRIPTION, config=(tyro.conf.FlagCreatePairsOff,)) or 0
    except SystemExit as stop: # tyro has answered already: help, or a wrong flag
        return stop.code or 0
    except KeyboardInterrupt:
        print("\nlesa: interrupted", file=sys.stderr)
        return 130
    except Stopped as stopped: # asked to end, and everything is saved
        if is_chief(): print(f"lesa: {stopped}", file=sys.stderr)
        return stopped.status
    except (UsageError, *_MISTAKES) as mistake:
        if os.environ.get("LESA_DEBUG"): raise
        who = "lesa" if is_chief() else f"lesa (process {os.environ['RANK']})"
        print(f"{who}: {' '.join(str(mistake).split()) or type(mistake).__name__}", file=sys.stderr)
        return 2 if isinstance(mistake, UsageError) else 1
