"""Package facts come from settings.ini; nothing is declared twice."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
extras = {name: cfg[f"{name}_requirements"].split() for name in ("demo", "export", "coco", "train", "hub", "timm")}
extras["dev"] = sum(extras.values(), cfg["dev_requirements"].split())
extras["site"] = cfg["site_requirements"].split()
extras["browser"] = cfg["browser_requirements"].split() + extras["site"]

setup(
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
