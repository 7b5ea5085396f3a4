"""Draw the pictures of the README anew.

    python tools/draw_images.py              # the map
    python tools/draw_images.py triptych     # one photograph before three networks, which it trains first: minutes
    python tools/draw_images.py explorer     # the explorer's page of the same photograph, as Chromium shows it: minutes

The networks are trained with one thread, so that one machine draws the same picture every time; another one may round
differently, and train other networks.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "Images"
CROP = ("coins", (66, 150), (5, 5))  # the photograph, row and column of the crop in it, row and column of the position
STEPS = 250


def trained(steps):
    "Convolution, plain attention and LESA, trained on crops of photographs."
    import torch

    from lesa_nb.study.photographs import train_triptych

    torch.set_num_threads(1)
    runs = train_triptych(steps, device="cpu")
    for term, run in runs.items():
        facts = run.metadata
        print(f"{term}: {facts['accuracy']:.1%} of {facts['pictures']} unseen crops, {facts['parameters']:,} weights, "
              f"{facts['cpu_seconds']} s", flush=True)
    return runs


def draw_map_image(steps):
    "The map, as the README shows it."
    from lesa_nb.look.figures import draw_tall_map, save_png

    save_png(draw_tall_map(), IMAGES / "lesa_map.png")


def draw_triptych_image(steps):
    "One crop that no network has seen, and what a position of it reads."
    from lesa_nb.study.photographs import draw_triptych

    fig = draw_triptych(trained(steps), *CROP)
    all_colors = dict(facecolor="white", metadata={"Software": None}, pil_kwargs={"optimize": True})
    fig.savefig(IMAGES / "triptych.png", dpi=100, **all_colors)


def draw_explorer_image(steps):
    "The same crop on the explorer's page, whole, in a window of 1100 pixels."
    from PIL import Image
    from playwright.sync_api import sync_playwright

    from lesa_nb.look.figures import reduced
    from lesa_nb.study.photographs import explore_crop

    program = os.environ.get("LESA_CHROMIUM", "/usr/bin/chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = explore_crop(trained(steps), *CROP).save(Path(folder) / "page.html")
        chromium = playwright.chromium.launch(executable_path=program)
        page = chromium.new_page(viewport={"width": 1100, "height": 900}, color_scheme="light")
        page.goto(file.as_uri())
        page.wait_for_function("() => document.documentElement.dataset.ready === 'yes'")
        page.screenshot(path=f"{folder}/page.png", full_page=True)
        chromium.close()
        with Image.open(f"{folder}/page.png") as picture:  # few colours: the source archive stays below 2 MB
            reduced(picture.convert("RGB"), "inferno").save(IMAGES / "explorer.png", optimize=True)


DRAW = {"map": draw_map_image, "triptych": draw_triptych_image, "explorer": draw_explorer_image}


def main():
    os.environ.setdefault("MPLBACKEND", "Agg")
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="map", choices=DRAW)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, for each network")
    args = parser.parse_args()
    DRAW[args.what](args.steps)


if __name__ == "__main__":
    main()
