"""Draw the pictures of the README that need no training anew: Images/lesa_map.png.

python tools/draw_images.py
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    os.environ.setdefault("MPLBACKEND", "Agg")
    sys.path.insert(0, str(ROOT))
    from lesa_nb.look.figures import draw_map, save_png

    print(save_png(draw_map(), ROOT / "Images" / "lesa_map.png"))


if __name__ == "__main__":
    main()
