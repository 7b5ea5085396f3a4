"""Figures as they lie in the notebooks: each map has its scale beside it, and nothing shows through."""
import ast
import base64
import io
import json

import matplotlib
import numpy as np
import pytest
from PIL import Image

MAPS = ("viridis", "BrBG", "RdBu", "magma", "inferno")  # the colour scales of maps in notebooks
DRAW_MAPS = ("show_maps", "overlay", "explain_figure", "show_contexts", "show_gallery")


def figures(path):
    "The source of each cell of a notebook that has figures, and these."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        found = [output["data"]["image/png"] for output in cell.get("outputs", ()) if "image/png" in output["data"]]
        if found:
            yield "".join(cell["source"]), [Image.open(io.BytesIO(base64.b64decode("".join(png)))) for png in found]


def maps_drawn(source):
    "How many times a cell draws maps, photographs (grey) not counted."
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return sum(getattr(call.func, "id", "") in DRAW_MAPS
               and not any(word.arg == "cmap" and getattr(word.value, "value", "") == "gray" for word in call.keywords)
               for call in calls)


def has_scale(picture):
    "Whether some column of pixels runs through a whole colour scale, downwards from its upper end."
    picture = picture.convert("P") if picture.mode != "P" else picture
    palette = np.reshape(picture.getpalette(), (-1, 3)).astype(int)
    pixels = np.asarray(picture)[:, ::4]  # a bar is wider than that
    for name in MAPS:
        scale = np.array(matplotlib.colormaps[name](np.arange(256))[:, :3])*255
        off = np.abs(palette[:, None] - scale).max(-1)
        level = np.where(off.min(1) < 20, off.argmin(1), -1)[pixels]  # -1: no colour of this scale
        joined = (level[1:] >= 0) & (level[:-1] >= 0) & (np.diff(level, axis=0) <= 2)
        for column in np.nonzero((joined.sum(0) >= 30) & (level.max(0) - level.min(0) >= 200))[0]:
            for run in np.split(level[:, column], 1 + np.nonzero(~joined[:, column])[0]):
                if len(run) >= 30 and run[0] - run[-1] >= 200 and len(np.unique(run)) >= 10:
                    return True
    return False


def narrow(source):
    """Drawings of a cell whose pictures are less than 1.5 inches wide: 150 pixels.

    Where a row of pictures is as wide as its figure, as in all cells that draw them by hand. `show_maps` and
    `show_batch` see to it themselves.
    """
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = {getattr(call.func, "attr", getattr(call.func, "id", "")) for call in calls}
    for call in calls:
        if getattr(call.func, "id", "") == "new_figure" and names & {"imshow", "overlay"}:
            size = next(word.value for word in call.keywords if word.arg == "size")
            columns = call.args[1].value if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) else 1
            if isinstance(size.elts[0], ast.Constant) and size.elts[0].value/columns < 1.5:
                yield ast.unparse(call)


def test_no_picture_is_narrower_than_150_pixels(root):
    assert [*narrow("fig, axes = new_figure(2, 4, size=(5.9, 3))\naxes[0, 0].imshow(x)")]
    found = [(path.name, call) for path in notebooks(root) for source, _ in figures(path) for call in narrow(source)]
    assert not found


def notebooks(root):
    return sorted((root / "nbs").rglob("[0-9c]*.ipynb"))


def test_every_saved_map_has_its_scale(root):
    without, seen = [], 0
    for path in notebooks(root):
        for source, pictures in figures(path):
            if maps_drawn(source):
                seen += 1
                if not has_scale(pictures[-1]):
                    without.append(f"{path.name}: {source.splitlines()[0]}")
    assert seen > 40 and not without


def test_no_saved_figure_is_transparent(root):
    "On JupyterLab's dark theme black letters would be lost."
    for path in notebooks(root):
        for _, pictures in figures(path):
            for picture in pictures:
                assert picture.mode in ("P", "RGB", "L") and "transparency" not in picture.info, path.name
                assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255), path.name


@pytest.mark.parametrize("options, expected", [({}, True), (dict(shared=False), True), (dict(colorbar=False), False)])
def test_a_scale_is_seen_where_there_is_one(options, expected):
    from lesa_nb.look.figures import _png, show_maps
    for maps in (np.random.default_rng(0).random((2, 9, 9)), np.random.default_rng(0).standard_normal((1, 20, 3))):
        fig = show_maps(maps, title="a map", **options)
        assert has_scale(Image.open(io.BytesIO(_png(fig)))) == expected
        matplotlib.pyplot.close(fig)
