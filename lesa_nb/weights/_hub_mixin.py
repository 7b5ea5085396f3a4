"""A network with huggingface_hub's mixin, and the card that is written for it."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from lesa_nb.weights.files import _MODEL_FILE, save_weights
from lesa_nb.weights.load import Loaded, load
from lesa_nb.weights.timm_registry import _FOR_TIMM, default_cfgs

__all__ = ["HubNetwork", "card", "config", "fetch"]

#: stands in cards that this library wrote and may write again
_MARK = "<!-- Written by lesa_nb from the metadata of the weights; take this line out to keep the card as it is. -->"
_NOT_RUN = "not run"
_TITLES = {"resnet50": "LESA-ResNet-50", "wrn50": "LESA-WRN-50", "small": "a small LESA network",
           "mask_rcnn": "Mask R-CNN", "htc": "HTC"}
#: scores by their names in metadata, of each kind, and what a card calls them
_SCORES = {
    "classifier": {"top1": "top-1 accuracy, %", "top5": "top-5 accuracy, %"},
    "detector": {"box AP": "box AP, %", "mask AP": "mask AP, %"},
}


def config(loaded: Loaded) -> dict[str, Any]:
    """What config.json holds: the metadata, and for the published classifiers what timm needs to build them."""
    told = loaded.metadata
    found: dict[str, Any] = dict(library_name="lesa_nb", kind=loaded.kind, metadata=told)
    in_timm = f"lesa_{told.get('network')}"
    if told.get("arch") != "classifier" or in_timm not in default_cfgs:
        return found
    size = told["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    number = len(loaded.classes)
    return found | dict(
        architecture=in_timm, num_classes=number, num_features=2048, global_pool="avg",
        label_names=loaded.classes, model_args=dict(img_size=size, position=told["position"], term=told["term"]),
        pretrained_cfg=dict(num_classes=number, input_size=[3, height, width], **_FOR_TIMM))


def _cell(value: Any) -> str:
    """A value as one cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _named(names: list[str], most: int = 10) -> str:
    shown = ", ".join(names[:most])
    return f"{len(names)}: {shown}" + (", ..." if len(names) > most else "")


def _network_rows(loaded: Loaded) -> Iterable[tuple[str, Any]]:
    told = {**loaded.metadata, **loaded.metadata.get("net", {})}
    name = str(told.get("model", told.get("network", told.get("arch"))))
    yield "network", _TITLES.get(name, name)
    for key, title in (("term", "what looks around"), ("position", "position tables"), ("image_size", "image size")):
        if told.get(key) is not None:
            yield title, told[key]
    yield "parameters", f"{sum(p.numel() for p in loaded.model.parameters()):,}"
    yield "classes", _named(loaded.classes)


def _training_rows(told: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    recipe, start = told.get("recipe"), told.get("start")
    if isinstance(recipe, Mapping):  # a name alone would hide what was changed
        numbers = [f"{name} {value}" for name, value in recipe.items() if name != "name" and value]
        yield "recipe", ": ".join(filter(None, [str(recipe.get("name", "")), ", ".join(numbers)]))
    else:
        yield "recipe", recipe or "not said"
    for key in ("epoch", "seed"):
        if key in told:
            yield key, told[key]
    if isinstance(start, Mapping):
        yield "started from", f"{start.get('file')} (SHA-256 {str(start.get('sha256'))[:12]}...)"
    else:
        yield "started from", "random weights" if recipe else "not said"


def _score_rows(loaded: Loaded) -> Iterable[tuple[str, Any]]:
    scores = loaded.metadata.get("scores") or {}
    titles = {name: title for name, title in _SCORES[loaded.kind].items() if name in scores or name != "mask AP"
              or loaded.metadata.get("net", {}).get("masks", True)}
    if loaded.kind == "classifier" and len(loaded.classes) <= 5:
        titles.pop("top5")
    for name, title in titles.items():
        yield f"{title}, on the run's own validation images", (
            f"{scores[name]:.2f}" if isinstance(scores.get(name), (int, float)) else _NOT_RUN)
    for name, score in scores.items():
        if name not in titles:
            yield name, f"{score:.4g}" if isinstance(score, (int, float)) else score
    yield "convolution and plain attention, same recipe and data", _NOT_RUN
    yield "images from elsewhere, other cameras, corrupted images", _NOT_RUN


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)])


def card(loaded: Loaded) -> str:
    """The model card: what the metadata say, and "not run" where nothing was measured."""
    told = loaded.metadata
    tags = ["lesa", "self-attention", "computer-vision", "model_hub_mixin"]
    data = ModelCardData(
        library_name="lesa_nb", license=told.get("license"), tags=tags,
        pipeline_tag="image-classification" if loaded.kind == "classifier" else "object-detection")
    asked = "classes, best first" if loaded.kind == "classifier" else "objects: name, score, box, mask"
    title = _cell(dict(_network_rows(loaded))["network"])
    return f"""---
{data.to_yaml()}
---
{_MARK}

# {title}, a {loaded.kind} with locally enhanced self-attention

A network of [lesa_nb](https://github.com/lesa-nb/lesa_nb), after
[Locally Enhanced Self-Attention](https://arxiv.org/abs/2107.05637).

```python
import lesa_nb

network = lesa_nb.from_pretrained("user/name")          # or the folder; needs lesa_nb[hub]
answers = lesa_nb.predict(network, ["photo.jpg"])       # {asked}
```

## The network

{_table(_network_rows(loaded))}

## How it was trained

{_table(_training_rows(told))}

## What was measured

{_table(_score_rows(loaded))}

"{_NOT_RUN}" means that nobody measured it, or did not say so. The scores are those in the metadata of the weights.
"""


class HubNetwork(ModelHubMixin, library_name="lesa_nb", repo_url="https://github.com/lesa-nb/lesa_nb", tags=["lesa"]):
    """What `load` returns, with huggingface_hub's `save_pretrained`, `from_pretrained` and `push_to_hub`."""

    def __init__(self, loaded: Loaded):
        self.loaded = loaded
        self._hub_mixin_config = config(loaded)

    def _save_pretrained(self, save_directory: Path) -> None:
        old = save_directory / "README.md"
        if old.exists() and _MARK in old.read_text(encoding="utf-8", errors="replace"):
            old.unlink()  # the mixin leaves a card that is there
        save_weights(self.loaded.model, save_directory / _MODEL_FILE, **self.loaded.metadata)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, revision: str | None, cache_dir: str | Path | None, force_download: bool,
        local_files_only: bool, token: str | bool | None, **unused: Any,
    ) -> HubNetwork:
        file = hf_hub_download(model_id, _MODEL_FILE, revision=revision, cache_dir=cache_dir, token=token,
                               force_download=force_download, local_files_only=local_files_only)
        return cls(load(file))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card of this network."""
        return ModelCard(card(self.loaded))


def fetch(name: str, **options: Any) -> Loaded:
    """The network in a repository; ConnectionError says why there is none."""
    try:
        return HubNetwork.from_pretrained(name, **options).loaded
    except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConnectionError(f"{name}: no network could be fetched ({reason}); check the name, your connection and, "
                              "for a private repository, hf auth login") from error
