"""Build the site in out/site: the course, pages to look up, the package. Warnings and broken links are errors.

    python tools/make_site.py              # what `make site` calls
    python tools/make_site.py FOLDER       # somewhere else

Nothing is run and nothing is fetched: notebooks show the figures that are saved in them. The folder opens as it is.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent / "site"
sys.path.insert(0, str(HERE))

import links  # noqa: E402
import sources  # noqa: E402


def build(to):
    "Build it; returns the number of pages. Ends the program where Sphinx warns or a link leads nowhere."
    work = to.parent / f"{to.name}-source"
    sources.write(work)
    shutil.rmtree(to, ignore_errors=True)
    options = ["-b", "html", "-c", str(HERE), "-d", str(work / ".cache"), "-W", "--keep-going", "-q", "-j", "auto"]
    if subprocess.call([sys.executable, "-m", "sphinx", *options, str(work), str(to)]):
        sys.exit("error: the site was not built without warnings; they stand above")
    shutil.rmtree(to / ".doctrees", ignore_errors=True)
    broken = links.broken(to)
    if broken:
        sys.exit("\n".join([*broken, f"error: {len(broken)} links of the site lead nowhere"]))
    return len(list(to.rglob("*.html")))


def main():
    begin = time.monotonic()
    to = Path(sys.argv[1] if len(sys.argv) > 1 else sources.ROOT / "out" / "site").resolve()
    pages = build(to)
    print(f"{pages} pages in {time.monotonic() - begin:.0f} s; every link leads somewhere. Open {to / 'index.html'}")


if __name__ == "__main__":
    main()
