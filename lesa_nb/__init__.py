"""LESA, locally enhanced self-attention: to learn from and to use.

    import lesa_nb
    layer = lesa_nb.LESA(64, 64, fmap=14)

The names below are loaded when they are first used, so that `import lesa_nb` takes no time and brings in nothing heavy.
"""

__version__ = "0.1.0"

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lesa_nb.weights.timm_registry import watch as _watch_for_timm

if TYPE_CHECKING:  # what an editor and a type checker see
    from lesa_nb.layers.lesa import LESA, attend_with
    from lesa_nb.models.htc import htc_lesa_wrn50, mask_rcnn_lesa_resnet50
    from lesa_nb.models.resnet import lesa_resnet50, lesa_wrn50
    from lesa_nb.tasks.predict import predict
    from lesa_nb.weights.folding import fold_norms
    from lesa_nb.weights.graft import graft
    from lesa_nb.weights.hub import from_pretrained, push_to_hub, save_pretrained
    from lesa_nb.weights.load import load
    from lesa_nb.weights.published import load_published

#: public name -> the module that owns it
_OWNERS = {
    "LESA": "layers.lesa",
    "attend_with": "layers.lesa",
    "fold_norms": "weights.folding",
    "from_pretrained": "weights.hub",
    "graft": "weights.graft",
    "htc_lesa_wrn50": "models.htc",
    "lesa_resnet50": "models.resnet",
    "lesa_wrn50": "models.resnet",
    "load": "weights.load",
    "load_published": "weights.published",
    "mask_rcnn_lesa_resnet50": "models.htc",
    "predict": "tasks.predict",
    "push_to_hub": "weights.hub",
    "save_pretrained": "weights.hub",
}

__all__ = [
    "LESA",
    "attend_with",
    "fold_norms",
    "from_pretrained",
    "graft",
    "htc_lesa_wrn50",
    "lesa_resnet50",
    "lesa_wrn50",
    "load",
    "load_published",
    "mask_rcnn_lesa_resnet50",
    "predict",
    "push_to_hub",
    "save_pretrained",
]


def _one_thread_each() -> None:
    "nbdev_test runs notebooks side by side: with more threads than cores they would mostly wait for each other."
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "torch" in sys.modules and os.environ["OMP_NUM_THREADS"] == "1":
        sys.modules["torch"].set_num_threads(1)


if os.environ.get("IN_TEST"):  # set by nbdev_test
    _one_thread_each()

_watch_for_timm()  # its registry gets lesa_resnet50 and lesa_wrn50 as soon as it is imported


def __getattr__(name: str) -> Any:
    "Load the module that owns a public name (PEP 562)."
    if name not in _OWNERS:
        raise AttributeError(f"module 'lesa_nb' has no attribute {name!r}")
    value = getattr(import_module(f"lesa_nb.{_OWNERS[name]}"), name)
    globals()[name] = value  # the next time it is found at once
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
