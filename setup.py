"""Package facts come from settings.ini; nothing is declared twice. Archives carry notebooks without figures."""

import json
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

here = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
extras = {name: cfg[f"{name}_requirements"].split() for name in ("demo", "export", "coco", "train", "hub", "timm")}
extras["dev"] = sum(extras.values(), cfg["dev_requirements"].split())
extras["site"] = cfg["site_requirements"].split()
extras["browser"] = cfg["browser_requirements"].split() + extras["site"]


def notebooks(root):
    "Every notebook of the course in `root`/nbs, relative to it."
    found = [path.relative_to(root) for path in sorted(root.glob("nbs/**/*.ipynb"))]
    return [name for name in found if ".ipynb_checkpoints" not in name.parts]


def without_outputs(path):
    "A notebook's text without what running it made."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


class SourceArchive(sdist):
    "Figures are nine tenths of the notebooks; `make notebooks` draws them again. Those of index.ipynb make the README."

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        for name in notebooks(Path(base_dir)):
            if name.name != "index.ipynb":
                path = Path(base_dir) / name
                text = without_outputs(path)
                path.unlink()  # it may be a hard link to the file of the project
                path.write_text(text, encoding="utf-8", newline="\n")


class Build(build_py):
    "The course, for `lesa exercise`, goes into the wheel as lesa_nb/_course/; a clone has it in nbs/."

    def _course(self):
        "Where a notebook of the project goes in the build."
        course = Path(self.build_lib) / cfg["lib_path"] / "_course"
        return {here / name: course / name.relative_to("nbs") for name in notebooks(here)}

    def run(self):
        super().run()
        if getattr(self, "editable_mode", False):
            return
        shutil.rmtree(Path(self.build_lib) / cfg["lib_path"] / "_course", ignore_errors=True)  # of an earlier build
        for path, target in self._course().items():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(without_outputs(path), encoding="utf-8", newline="\n")

    def get_outputs(self, include_bytecode=1):
        made = [] if getattr(self, "editable_mode", False) else list(map(str, self._course().values()))
        return super().get_outputs(include_bytecode) + made


setup(
    cmdclass={"sdist": SourceArchive, "build_py": Build},
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["lesa_nb", "lesa_nb.*"]),
    package_data={"lesa_nb": ["py.typed", "look/*.html"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": [cfg["console_scripts"]],
        "nbdev": ["lesa_nb=lesa_nb._modidx:d"],
    },
    zip_safe=False,
)
