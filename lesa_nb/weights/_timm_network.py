"""LESA's classifiers with the calls that timm expects of a model; their tensors have the same names as everywhere."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, checkpoint_seq
from torch import Tensor, nn

from lesa_nb.models.foreign import refuse_pretrained
from lesa_nb.models.images import check_batch
from lesa_nb.models.resnet import ResNet
from lesa_nb.weights._names import in_our_names, is_published, unwrap

__all__ = ["TimmResNet", "build_for_timm"]


class TimmResNet(ResNet):
    """A `ResNet` that timm's scripts can use: heads that can be exchanged, maps of the stages, gradient checkpoints.

    Args:
        num_classes: Number of logits; 0 for none.
        img_size: Size the position tables are made for; other sizes run too.
        in_chans: Images are RGB.
        global_pool: timm's name of a pool, or "" for none.
        drop_rate: Share of pooled features that training leaves out.
        options: Those of `ResNet`.

    Raises:
        ValueError: Images are to have other than three channels.
        TypeError: There is no such option.
    """

    def __init__(
        self, *, num_classes: int = 1000, img_size: int | tuple[int, int] = 224, in_chans: int = 3,
        global_pool: str = "avg", drop_rate: float = 0., drop_path_rate: float = 0., **options: Any,
    ):
        if drop_path_rate:
            raise TypeError(f"there is no drop_path_rate here (found {drop_path_rate}): drop_rate leaves out features")
        options.setdefault("image_size", img_size)
        super().__init__(num_classes=1, in_chans=in_chans, **options)
        channels = [4*self.conv1.out_channels*2**i for i in range(self.depth)]
        reductions = [4]
        for i in range(2, self.depth + 1):
            first: Any = self.get_submodule(f"layer{i}.0")
            reductions.append(reductions[-1]*(1 if isinstance(first.downsample, nn.Identity)
                                              else first.downsample[0].stride[0]))
        self.feature_info = [dict(num_chs=self.conv1.out_channels, reduction=2, module="relu")] + [
            dict(num_chs=number, reduction=reduction, module=f"layer{i}")
            for i, (number, reduction) in enumerate(zip(channels, reductions), 1)]
        self.in_chans, self.drop_rate, self.grad_checkpointing = in_chans, drop_rate, False
        self.num_features = channels[-1]
        del self.avgpool
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer, and another pool if one is named."""
        pool: Any = getattr(self, "global_pool", None)
        kind = pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, head = create_classifier(self.num_features, num_classes, pool_type=kind)
        self.global_pool.train(self.training)
        self.fc = head.to(self.conv1.weight).train(self.training)
        self.head_hidden_size = self.num_features*self.global_pool.feat_mult()

    def get_classifier(self, name_only: bool = False) -> Any:
        """The last layer, or its name."""
        return "fc" if name_only else self.fc

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Forget the maps inside blocks in training and compute them again: less memory, more work."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of names for timm's rates by layer."""
        return dict(stem=r"^conv1|bn1", blocks=r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)")

    def _taken(self, indices: int | Sequence[int] | None) -> list[int]:
        """Numbers of maps from 0: all for None, the last n for n, counted from the end where negative."""
        number = self.depth + 1
        wanted = range(number) if indices is None else range(-indices, 0) if isinstance(indices, int) else indices
        if not wanted or not all(-number <= i < number for i in wanted):
            raise ValueError(f"there are {number} maps, 0 the stem and 1 to {self.depth} the stages, got {indices!r}")
        return [i % number for i in wanted]

    def _stage(self, i: int, x: Tensor) -> Tensor:
        stage: Any = self.get_submodule(f"layer{i}")
        return checkpoint_seq(stage, x) if self.grad_checkpointing and torch.is_grad_enabled() else stage(x)

    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = None, norm: bool = False, stop_early: bool = False,
        output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> Any:
        """The last map and those asked for: 0 is the stem, 1 to 4 are the stages; all if `indices` is None."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        taken = self._taken(indices)
        x = self.relu(self.bn1(self.conv1(check_batch(x))))
        maps = {0: x} if 0 in taken else {}
        x = self.maxpool(x)
        for i in range(1, (max(taken) if stop_early else self.depth) + 1):
            x = self._stage(i, x)
            if i in taken:
                maps[i] = x
        found = list(maps.values())
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Leave out the head, for whoever asks for maps alone; which maps these are, counted from the stem."""
        taken = self._taken(indices)
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map (B, num_features, h, w)."""
        return self.forward_intermediates(x, indices=1)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the last map, or what they are made of."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised RGB images (B, 3, H, W) of any size."""
        return self.forward_head(self.forward_features(x))


def _in_our_names(tensors: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A state dict as this library names it, whoever wrote it."""
    found, _ = unwrap(dict(tensors), "the checkpoint")
    return in_our_names(found) if is_published(found) else found


def build_for_timm(network: str, pretrained: bool, **options: Any) -> nn.Module:
    """What `timm.create_model(network, pretrained, **options)` returns.

    Raises:
        ValueError: Weights are asked for and nothing says where they are; the sentence says how to load some.
    """
    cfg, overlay = options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay")
    places = [source for source in (cfg, overlay) if source and not isinstance(source, str)]
    known = [source if isinstance(source, dict) else vars(source) for source in places]
    if pretrained and not any(s.get(key) for s in known for key in ("file", "url", "hf_hub_id", "state_dict")):
        refuse_pretrained(dict(pretrained=pretrained), more=(
            f"; or timm.create_model({network!r}, pretrained=True, pretrained_cfg_overlay=dict(file=FILE))"))
    return build_model_with_cfg(TimmResNet, network, pretrained, pretrained_filter_fn=_in_our_names, **options)
