"""`lesa check`: is this machine ready?"""
import configparser
import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

_OLDEST_PYTHON = (3, 10)

#: optional package -> what needs it; which extra brings it, and the versions, stand in settings.ini
_PURPOSES = {
    "scikit-learn": "real pictures for `lesa demo`",
    "tensorboard": "TensorBoard files beside the log of a run",
    "faster-coco-eval": "training and scoring detectors",
    "pycocotools": "a second opinion on COCO scores",
    "onnx": "`lesa export` to ONNX",
    "timm": "`timm.create_model(\"lesa_resnet50\")`",
    "huggingface_hub": "networks on the Hugging Face Hub",
    "jupyterlab": "reading and running the notebooks",
    "nbdev": "turning notebooks into the package",
    "pytest": "running the tests",
}


class _Part(NamedTuple):
    "One line of the table."

    name: str
    found: str  # a version, or what is there
    state: str  # "ok", "optional" (missing, but not needed) or "broken"
    note: str = ""  # what it is for, or what to do


class _Requirement(NamedTuple):
    "A package that the library asks for."

    name: str
    floor: str  # smallest version that will do, or ""
    extra: str  # which extra asks for it, or "" where everything needs it


def _numbers(text: str) -> tuple[int, ...]:
    "The first two numbers of a version: '2.10.0+cpu' -> (2, 10)."
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2] if part.isdigit())


def _requirements() -> list[_Requirement]:
    "What the installed package asks for, or settings.ini where it is used from its folder."
    try:
        lines = requires("lesa_nb") or []
    except PackageNotFoundError:
        config = configparser.ConfigParser(delimiters=["="], interpolation=None)
        config.read(Path(__file__).parents[2] / "settings.ini", encoding="utf-8")
        lines = []
        for key, value in config["DEFAULT"].items():
            if key == "requirements" or key.endswith("_requirements"):
                extra = key.removesuffix("requirements").rstrip("_")
                lines += [f'{word}; extra == "{extra}"' if extra else word for word in value.split()]
    parts = r"^([\w.-]+)", r">=\s*([\d.]+)", r"extra == ['\"](\w+)"
    return [_Requirement(*("".join(re.findall(part, line)[:1]) for part in parts)) for line in lines]


def _package(need: _Requirement) -> _Part:
    "One package: there, too old, or missing."
    wanted = f"'{need.name}>={need.floor}'" if need.floor else need.name
    purpose = _PURPOSES.get(need.name, "")
    try:
        found = version(need.name)
    except PackageNotFoundError:
        if need.extra:
            return _Part(need.name, "missing", "optional", f"{purpose}: pip install 'lesa_nb[{need.extra}]'")
        return _Part(need.name, "missing", "broken", f"pip install {wanted}")
    if _numbers(found) < _numbers(need.floor):
        what = f"too old for {purpose}" if need.extra else "too old"
        state = "optional" if need.extra else "broken"
        return _Part(need.name, found, state, f"{what}, need {need.floor} or newer: pip install -U {wanted}")
    return _Part(need.name, found, "ok", purpose)


def _packages() -> Iterator[_Part]:
    "What is installed, what is too old, and what is missing."
    try:
        yield _Part("lesa_nb", version("lesa_nb"), "ok")
    except PackageNotFoundError:
        hint = "used from its folder; to install it there: pip install -e ."
        yield _Part("lesa_nb", "not installed", "optional", hint)
    if sys.version_info < _OLDEST_PYTHON:
        oldest = ".".join(map(str, _OLDEST_PYTHON))
        yield _Part("python", platform.python_version(), "broken", f"need {oldest} or newer")
    else:
        yield _Part("python", platform.python_version(), "ok")
    seen = set()
    for need in _requirements():
        if need.name not in seen and (not need.extra or need.name in _PURPOSES):
            seen.add(need.name)
            yield _package(need)


def _pair() -> _Part:
    "Do torch and torchvision fit together? Only a real call of a compiled operation tells."
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception as error:  # a torch without its libraries fails in many ways
        is_cpu = "+cpu" in getattr(sys.modules.get("torch"), "__version__", "")
        index = " --index-url https://download.pytorch.org/whl/cpu" if is_cpu else ""
        cure = f"install them together: pip install --force-reinstall torch torchvision{index}"
        return _Part("torch + torchvision", "do not fit", "broken", f"{' '.join(str(error).split())}; {cure}")
    return _Part("torch + torchvision", "fit together", "ok")


def _machine() -> Iterator[_Part]:
    "Processor and GPUs."
    try:
        import torch
    except Exception:  # already reported
        return
    yield _Part("CPU", f"{os.cpu_count()} cores", "ok", f"torch uses {torch.get_num_threads()} threads")
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        bf16 = "with" if gpu.major >= 8 else "without"
        yield _Part(f"GPU {i}", gpu.name, "ok", f"{gpu.total_memory / 2**30:.0f} GiB, {bf16} bfloat16")
    if not torch.cuda.device_count():
        yield _Part("GPU", "none", "optional", "everything runs on the CPU, only slower")


def check_machine() -> int:
    """Check the machine: is everything there, and does it fit together?

    Prints versions, whether torch and torchvision fit together, GPUs, what is missing and how to install it.
    Ends with status 0 if everything needed is there, else with 1.
    """
    parts = [*_packages(), _pair(), *_machine()]
    widths = [max(len(part[i]) for part in parts) for i in range(3)]
    for part in parts:
        print("  ".join([*(text.ljust(w) for text, w in zip(part, widths)), part.note]).rstrip())
    broken = [part.name for part in parts if part.state == "broken"]
    print(f"\nto be mended: {', '.join(broken)}" if broken else "\nready")
    return 1 if broken else 0
