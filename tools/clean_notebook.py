"""What of a notebook is kept in its file: what a person wrote, and its figures.

`make notebooks` and JupyterLab's save (lab.py) both write by this rule, so running a notebook and saving it leaves git
clean:

* figures (PNG) stay with their alternative text, every other output goes, and so do counters, widgets and the editor's
  own notes (`nbdev_clean`);
* a figure that looks as it did keeps the bytes that it had: another machine rounds, compresses and signs differently;
  and so does one that was measured (`#| measured`), whatever the clock says this time or a training comes to here.
"""

import base64
import io
import itertools
import json
import re
from pathlib import Path

import numpy as np
import project
from nbdev.clean import clean_nb
from nbdev.config import get_config
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
_measured = re.compile(r"^\s*#\s*\|\s*measured\b", re.MULTILINE)
ROUNDING = 16  # of 255 levels: less than an eye sees, and far less than one letter for another
SPECK = 96  # of 255 levels: how far off the nearest of 256 colours may be; letters stand out more
SPECKS = 1e-3  # share of the pixels that may be specks


def _joined(text):
    return text if isinstance(text, str) else "".join(text)


def _png(output):
    "The picture of an output as base64 text, or None."
    data = output.get("data", {}).get("image/png")
    return None if data is None else _joined(data).strip()


def _figures(cell):
    "Pictures of a cell: (base64 text, alternative text)."
    drawn = [(_png(output), project.alternative_text(output)) for output in cell.get("outputs", [])]
    return [(png, words) for png, words in drawn if png is not None]


def _output(png, words):
    metadata = {"image/png": {"alt": words}} if words else {}
    return {"output_type": "display_data", "metadata": metadata, "data": {"image/png": png}}


def keep_figures(nb):
    "Drop every output but PNG figures, and of these all but picture and words."
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [_output(png, words) for png, words in _figures(cell)]


def _pixels(png):
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        return np.asarray(picture.convert("RGBA"), dtype=np.int16)


def same_picture(before, now):
    """Whether two PNG pictures (base64 text) have one size and look alike.

    No pixel differs by more than rounding, but for specks: photographs have more colours than the 256 of a saved
    figure, and rounding decides which of them a few single pixels get. A square of 3 x 3 such pixels is no speck.
    """
    if before == now:
        return True
    try:
        before, now = _pixels(before), _pixels(now)
    except (OSError, ValueError):
        return False
    if before.shape != now.shape:
        return False
    off = np.abs(before - now).max(-1)
    if int(off.max()) <= ROUNDING:
        return True
    specks = off > ROUNDING
    if int(off.max()) > SPECK or specks.mean() > SPECKS or min(specks.shape) < 3:
        return False
    return not np.lib.stride_tricks.sliding_window_view(specks, (3, 3)).all((-1, -2)).any()


def _code(cell):
    return _joined(cell["source"])


def keep_unchanged(nb, before):
    """Give the figures that look as they did in `before` the bytes that they had there.

    Cells are matched by their identity. A cell marked `#| measured` draws what it measured (seconds, bytes, what a
    network learned): it keeps its figures as long as the page's code is the same down to it, for another run, on a
    machine that adds in another order, measures something else.
    """
    kept = {cell["id"]: cell for cell in before["cells"] if "id" in cell}
    code = [cell for cell in nb["cells"] if cell["cell_type"] == "code"]
    code_before = [cell for cell in before["cells"] if cell["cell_type"] == "code"]
    same = sum(1 for _ in itertools.takewhile(lambda pair: _code(pair[0]) == _code(pair[1]), zip(code, code_before)))
    for number, cell in enumerate(code):
        old = kept.get(cell.get("id"))
        if not cell["outputs"] or old is None or old["cell_type"] != "code":
            continue
        figures, drawn = _figures(old), _figures(cell)
        if len(figures) != len(drawn):
            continue
        measured = number < same and _measured.search(_code(cell))
        for i, ((figure, words), (png, now)) in enumerate(zip(figures, drawn)):
            if measured or same_picture(figure, png):
                cell["outputs"][i] = _output(figure, words if measured and words else now)


def clean(nb, before=None):
    """Leave of the notebook `nb` (a dictionary, changed in place) what its file keeps.

    before: the notebook that the file holds so far, or None.
    """
    keep_figures(nb)
    while len(nb["cells"]) > 1 and nb["cells"][-1]["cell_type"] == "code" and not _joined(nb["cells"][-1]["source"]):
        nb["cells"].pop()  # Shift+Enter on the last cell has made one more
    config = get_config(path=ROOT)
    allowed = [config.get(f"allowed_{kind}metadata_keys", "").split() for kind in ("", "cell_")]
    clean_nb(nb, config.clear_all, *allowed, config.clean_ids)
    nb["metadata"].pop("widgets", None)
    if before is not None:
        keep_unchanged(nb, before)


def read(path):
    "The notebook in a file, or None where there is none that can be read."
    try:
        nb = json.loads(path.read_text(encoding="utf-8"))
        return nb if isinstance(nb["cells"], list) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
