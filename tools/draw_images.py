"""Draw the pictures of the README anew.

    python tools/draw_images.py              # the map
    python tools/draw_images.py triptych     # one photograph before three networks, which it trains first: minutes

Images/explorer.png is a screenshot of the explorer's page in a browser; no script makes it.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "Images"
CROP = ("coins", (66, 150), (8, 8))  # the photograph, row and column of the crop in it, row and column of the position


def draw_map_image():
    "The map, as the README shows it."
    from lesa_nb.look.figures import draw_tall_map, save_png

    save_png(draw_tall_map(), IMAGES / "lesa_map.png")


def draw_triptych_image(steps):
    "Train convolution, plain attention and LESA on crops of photographs, and draw one crop that none has seen."
    from lesa_nb.look.figures import save_png
    from lesa_nb.study.photographs import draw_triptych, train_triptych

    runs = train_triptych(steps)
    for term, run in runs.items():
        facts = run.metadata
        print(f"{term}: {facts['accuracy']:.1%} of {facts['pictures']} unseen crops, {facts['parameters']:,} weights, "
              f"{facts['cpu_seconds']} s")
    save_png(draw_triptych(runs, *CROP), IMAGES / "triptych.png")


def main():
    os.environ.setdefault("MPLBACKEND", "Agg")
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="map", choices=["map", "triptych"])
    parser.add_argument("--steps", type=int, default=250, help="of training, for each network of the triptych")
    args = parser.parse_args()
    draw_map_image() if args.what == "map" else draw_triptych_image(args.steps)


if __name__ == "__main__":
    main()
