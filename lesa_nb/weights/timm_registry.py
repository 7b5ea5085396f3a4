"""timm's registry knows LESA's classifiers: `timm.create_model("lesa_resnet50")`, whichever is imported first.

`import lesa_nb` calls `watch`. It enters the networks at once if timm is there, or else when timm has been imported; it
imports neither timm nor torch itself.
"""
from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

__all__ = ["default_cfgs", "watch"]

#: network -> what `create_model` gives `ResNet` for it
_NETWORKS: dict[str, dict[str, Any]] = {"lesa_resnet50": {}, "lesa_wrn50": dict(widen=2)}

#: how pictures are made ready, and the names of the first and the last layer, in timm's words
_FOR_TIMM: dict[str, Any] = dict(
    crop_pct=.875, interpolation="bilinear", mean=(.485, .456, .406), std=(.229, .224, .225), first_conv="conv1",
    classifier="fc")

#: network -> timm's description of it; `register_model` looks for it under this name
default_cfgs: dict[str, dict[str, Any]] = {
    name: dict(
        num_classes=1000, input_size=(3, 224, 224), pool_size=(14, 14), license="apache-2.0",
        paper_name="Locally Enhanced Self-Attention", paper_ids="arXiv:2107.05637", **_FOR_TIMM)
    for name in _NETWORKS}


def _entry(network: str) -> Any:
    """What timm calls for a name."""
    def build(pretrained: bool = False, **options: Any) -> Any:
        from lesa_nb.weights._timm_network import build_for_timm

        return build_for_timm(network, pretrained, **_NETWORKS[network] | options)

    build.__name__ = build.__qualname__ = network  # the name in the registry
    build.__doc__ = f"{network} with timm's calls; for its options see `lesa_nb.{network}`."
    return build


def _register() -> None:
    """Enter the networks into timm's registry; those that are in it stay."""
    from timm.models import is_model, register_model

    for network in _NETWORKS:
        if not is_model(network):
            entry = globals()[network] = _entry(network)  # timm names it in this module's __all__
            register_model(entry)


class _WhenImported:
    """A finder that finds timm as those behind it do, and enters the networks once timm has been imported."""

    _asking = False  # the finders behind this one

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The place of timm; of nothing else. Who only asks where it is changes nothing."""
        if name != "timm" or self._asking:
            return None
        self._asking = True
        try:
            spec = find_spec(name)
        finally:
            self._asking = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def watch() -> None:
    """Enter the networks into timm's registry now, or as soon as timm is imported."""
    if "timm.models" in sys.modules:
        _register()
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())
