"""Draw the pictures of the README anew: the map, and the two galleries as notebook 22 keeps them.

    python tools/draw_images.py

Images/explorer.png is a screenshot of the explorer's page in a browser; no script makes it.
"""

import base64
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GALLERY = ROOT / "nbs" / "4_seeing" / "22_gallery.ipynb"


def galleries():
    "The galleries in the notebook, in order: PNG files."
    for cell in json.loads(GALLERY.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code" and "\nshow_gallery(" in "".join(cell["source"]):
            for output in cell["outputs"]:
                if "image/png" in output.get("data", {}):
                    yield base64.b64decode("".join(output["data"]["image/png"]))


def main():
    os.environ.setdefault("MPLBACKEND", "Agg")
    sys.path.insert(0, str(ROOT))
    from lesa_nb.look.figures import draw_map, save_png

    save_png(draw_map(), ROOT / "Images" / "lesa_map.png")
    for name, data in zip(("gallery_digit.png", "gallery_photo.png"), galleries(), strict=True):
        (ROOT / "Images" / name).write_bytes(data)


if __name__ == "__main__":
    main()
