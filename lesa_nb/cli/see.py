"""`lesa demo`, `lesa explain`, `lesa explore`: see it learn, and what it looks at."""
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from lesa_nb.cli._common import UsageError, check_seed, check_threshold, positive, progress
from lesa_nb.cli._network import as_input, distinct_names, drawn_answer, network_answers, open_network

if TYPE_CHECKING:
    from lesa_nb.data.photos import Photo

_MOST_PIXELS = 2**22  # of a picture that is looked at; a larger one is reduced while it is read
_UNTRAINED = "UNTRAINED: the maps show what random weights do, not what a network has learned. Choose --weights."


def _progress(losses: Iterator[float], name: str, steps: int) -> Iterator[float]:
    "A progress bar around the losses of one run."
    bar = progress(losses, "step", total=steps, name=name)
    for loss in bar:
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        yield loss


def _print_answers(answers: Iterable[tuple[str, dict]]) -> None:
    "A line for each answer of `network_answers`."
    from lesa_nb.data.report import printable
    from lesa_nb.look.answers import format_answer

    for where, answer in answers:
        print(f"answer   {printable(format_answer(answer))} ({where})")


def run_demo(
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("out/demo"),
    steps: int = 600,
    seed: int = 0,
    fashion: Annotated[Path | None, arg(metavar="DIR")] = None,
    quick: bool = False,
) -> int:
    """Train convolution, plain attention and LESA on digits and on generated pictures, and show what LESA looks at.

    Takes some minutes on two CPU cores. Writes metrics.json, learning_curves.png, explain.png, explain_twin.png and
    the weights. Where Fashion-MNIST is at hand, it trains on that too: about a minute more, and explain_fashion.png.

    Args:
        out: Where everything is written.
        steps: Training steps of every network on both tasks.
        seed: Decides first weights and pictures; another seed, another run.
        fashion: Folder that holds FashionMNIST/raw, as torchvision keeps it. Default: data, if it holds that.
        quick: Only see whether everything runs: 4 steps of 16 pictures. Nothing is learned.
    """
    positive(steps=steps)
    check_seed(seed)
    from lesa_nb.study import demo
    from lesa_nb.study.fashion import fashion_at_hand
    from lesa_nb.study.report import result_table

    if fashion is None and fashion_at_hand("data"):
        fashion = Path("data")
    if fashion is not None and not quick:
        print(f"Fashion-MNIST from {fashion}: three more networks, about a minute", flush=True)
    few: dict[str, Any] = dict(steps=4, batch_size=16, valid=64) if quick else dict(steps=steps)
    metrics = demo.train_demo(out, seed=seed, fashion=fashion, watch=_progress, **few)
    print(f"\n{result_table(metrics['results'])}\n")
    if quick:
        print("a quick run: nothing was learned, these accuracies say only that everything runs")
    else:
        print("\n".join(metrics["findings"]))
    print(f"{metrics['seconds']:.0f} s; everything is in {out}")
    return 0


def _pixel(text: str | None, size: tuple[int, int]) -> tuple[int, int]:
    "Read 'X,Y' as row and column; the middle of a picture of this width and height if nothing was chosen."
    from lesa_nb.look.maps import cell_of

    if text is None:
        return size[1] // 2, size[0] // 2
    try:
        column, row = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--pixel wants two whole numbers X,Y, got {text!r}") from None
    cell_of((row, column), (size[1], size[0]), (1, 1))  # refuses a pixel outside the picture
    return row, column


def _reduced_pixel(pixel: tuple[int, int], photo: "Photo") -> tuple[int, int]:
    "Where a pixel of the full picture lies in the one that was reduced while it was read."
    (row, column), (width, height) = pixel, photo.full_size
    return row * photo.image.height // height, column * photo.image.width // width


def _new_file(
    out: Path | None, photo: Path, suffix: str, formats: Any, refusal: str, weights: tuple[Path, ...] = ()
) -> Path:
    "Where a result goes: a name of a kind that can be written, and never the photograph itself, nor weights."
    out = out or Path(f"{photo.stem}_lesa{suffix}")
    if out.is_dir():
        raise ValueError(f"{out}: a folder; --out wants the name of a file")
    if not out.suffix:
        out = out.with_suffix(suffix)
    if out.suffix[1:].lower() not in formats:
        raise ValueError(f"{out}: {refusal}")
    if out.exists() and out.samefile(photo):
        raise ValueError(f"{out}: this would overwrite the picture; choose another --out")
    if any(out.exists() and file.exists() and out.samefile(file) for file in weights):
        raise ValueError(f"{out}: this would overwrite the weights; choose another --out")
    return out


def _figure_file(out: Path | None, photo: Path, weights: Path | None) -> Path:
    "Where a figure goes: any format that matplotlib writes."
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    refusal = f"figures can be written as {', '.join(sorted(formats))}"
    return _new_file(out, photo, ".png", formats, refusal, (weights,) if weights else ())


def explain_photo(
    photo: Annotated[Positional[Path], arg(metavar="PHOTO")],
    weights: Annotated[Path | None, arg(metavar="FILE")] = None,
    pixel: Annotated[str | None, arg(metavar="X,Y")] = None,
    out: Annotated[Path | None, arg(metavar="FILE.png")] = None,
    layer: Annotated[str | None, arg(metavar="NAME")] = None,
    size: Annotated[int | None, arg(metavar="N")] = None,
    threshold: float = 0.5,
) -> int:
    """Draw what one attention layer makes of a photograph: local term, gate, what one pixel attends to, and the answer.

    A classifier answers with its three most probable classes, a detector with the objects that it finds.

    Args:
        photo: Any picture. Turned pictures, grey ones, CMYK, palettes and transparency are understood.
        weights: A .safetensors written by `lesa demo` or `lesa train`, or a .pth of the authors.
            Without it the network is untrained.
        pixel: Column and row in the picture, counted from 0 at the top left. Default: its middle.
        out: Where the figure goes. Default: the picture's name with _lesa.png, in the current folder.
        layer: The attention layer to look into. Default: the last one.
        size: Longer side in pixels at which the network sees the picture, rounded to whole patches.
            The aspect ratio stays.
        threshold: Least score of an object that a detector names.
    """
    positive(size=size)
    check_threshold(threshold)
    from lesa_nb.data.photos import open_photo, photo_tensor
    from lesa_nb.io.atomic import atomic_path
    from lesa_nb.look import capture, maps

    opened = open_photo(photo, max_pixels=_MOST_PIXELS, stretch=True)
    picture = opened.image
    row, column = _pixel(pixel, opened.full_size)
    out = _figure_file(out, photo, weights)
    network = open_network(weights)
    image = as_input(network, picture, size or network.size)
    seen = capture.capture_layer(network.model, image[None], layer)

    import matplotlib.pyplot as plt  # last: what goes wrong before needs no plotting

    answers = network_answers(network, opened, photo, image, threshold)
    shape = f"{image.shape[2]}x{image.shape[1]}"
    title = f"{network.title}; layer {seen.layer}, picture seen at {shape}"
    pixel_seen, says = _reduced_pixel((row, column), opened), drawn_answer(answers)
    fig = maps.explain_figure(photo_tensor(picture), seen, pixel_seen, title, answer=says)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out, what="the figure") as beside:
        fig.savefig(beside, dpi=110, bbox_inches="tight", format=out.suffix[1:])  # a title may be wider than a picture
    plt.close(fig)
    layers = ", ".join(capture.attention_layers(network.model))
    print(f"network  {network.title}")
    width, height = opened.full_size
    print(f"picture  {photo}: {width}x{height}, the network sees it at {shape}")
    print(f"layer    {seen.layer} of {layers}: {seen.size[1]}x{seen.size[0]} positions")
    print(f"pixel    {column},{row}" + ("" if pixel else " (the middle; choose another with --pixel X,Y)"))
    _print_answers(answers)
    print(f"figure   {out}")
    if weights is None:
        print(_UNTRAINED)
    return 0


def explore_photo(
    photo: Annotated[Positional[Path], arg(metavar="PHOTO")],
    weights: Annotated[tuple[Path, ...], arg(metavar="FILE")] = (),
    pixel: Annotated[str | None, arg(metavar="X,Y")] = None,
    out: Annotated[Path | None, arg(metavar="FILE.html")] = None,
    layer: Annotated[str | None, arg(metavar="NAME")] = None,
    size: Annotated[int | None, arg(metavar="N")] = None,
    mean: bool = False,
    threshold: float = 0.5,
) -> int:
    """Write a page on which every pixel of a photograph can be clicked.

    It shows what each head attends to from there, the gate, the local term, and what each network answers: the most
    probable classes, or objects with their boxes. One file, for any browser, without server or network.

    Args:
        photo: Any picture. Turned pictures, grey ones, CMYK, palettes and transparency are understood.
        weights: A .safetensors of `lesa demo` or `lesa train`, or a .pth of the authors; several for networks side
            by side. Without it the network is untrained.
        pixel: Column and row where the page starts, counted from 0 at the top left. Default: the middle.
        out: Where the page goes. Default: the picture's name with _lesa.html, in the current folder.
        layer: The only layer to show. Default: all, to choose from on the page.
        size: Longer side in pixels at which the networks see the picture, rounded to whole patches.
            The aspect ratio stays.
        mean: Keep only the mean of the heads: smaller files, larger pictures.
        threshold: Least score of an object that a detector names.
    """
    positive(size=size)
    check_threshold(threshold)
    from lesa_nb.data.photos import open_photo
    from lesa_nb.look.explorer import explorer

    opened = open_photo(photo, max_pixels=_MOST_PIXELS, stretch=True)
    picture = opened.image
    start = _reduced_pixel(_pixel(pixel, opened.full_size), opened)
    out = _new_file(out, photo, ".html", ("html", "htm"), "a page is written as .html", tuple(weights or ()))
    networks, images, answers = {}, {}, {}
    for file, called in zip(weights or (None,), distinct_names(weights) or (None,)):
        network = open_network(file, called)
        networks[network.title] = network.model
        images[network.title] = as_input(network, picture, size or network.size)[None]
        answers[network.title] = network_answers(network, opened, photo, images[network.title][0], threshold)
    layers = [layer] if layer else None
    says = {name: said for name, found in answers.items() if (said := drawn_answer(found))}
    page = explorer(
        picture, networks, images, answers=says, layers=layers, heads=not mean, pixel=start, title=photo.name,
        watch=partial(progress, unit="layer", name="maps of the page", watched=True),
    )
    page.save(out)
    width, height = opened.full_size
    print(f"picture  {photo}: {width}x{height}")
    for name, image in images.items():
        print(f"network  {name}, sees it at {image.shape[3]}x{image.shape[2]}")
        _print_answers(answers[name])
    print(f"page     {out}, {out.stat().st_size / 1e6:.1f} MB: open it in a browser")
    if not weights:
        print(_UNTRAINED)
    return 0
