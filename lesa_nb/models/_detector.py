"""The outside of a detector: torchvision's calls, images of any sizes, and what is known of each before a closer look.

What is inside a box is the business of `MaskRCNN` and `HTC`, which are built on this.
"""
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .foreign import settle
from .ops import Sampler, random_sampler
from .pyramid import Pyramid, prepare
from .rpn import RPN, RPNOutput, rpn_losses


class ImageFeatures(NamedTuple):
    """What is known of one image before anybody looks into a box."""

    maps: list[Tensor]  # the pyramid: five maps (1, C, h, w)
    rpn: RPNOutput  # scores and steps of the anchors
    stuff: tuple[Tensor, Tensor] | None = None  # class logits and features of every eighth pixel, in HTC


class Detector(nn.Module):
    """A pyramid, a proposal network, and torchvision's way of calling a detector.

    In training mode `detector(images, targets)` returns a dictionary of losses, otherwise `detector(images)` a list
    with a dictionary of `boxes` (n, 4), `labels` (n,), `scores` (n,) and `masks` (n, 1, H, W) for each image, best
    first, in the pixels of the image as it came. Images are float RGB (3, H, W), nominally in [0, 1], each of its own
    size; labels run from 1 to `num_classes`. Targets: see `prepare`; without `masks` an image teaches boxes only.

    `image_size` is the side of the square that images are brought to, or with `keep_ratio` the longer side. With
    `resize_in_training=False` images come at the network's size in training. `masks=False` leaves out the mask heads:
    such a detector learns and answers boxes only. `sampler` decides who is taken when a sample is full.
    `pre_nms_top_n` and `post_nms_top_n` change how many proposals there are, see `RPN`. `others` are arguments of other
    libraries: what asks for nothing (`weights=None`) is taken, the rest is answered with the name it has here.
    `num_classes` counts no background, where torchvision's detectors count one class more.
    """

    uses_semantic = False  # whether targets need a semantic map
    rpn_options: Mapping[str, Any] = {}  # what this kind of detector asks of its `RPN`

    def __init__(
        self,
        pyramid: Pyramid,
        *,
        num_classes: int = 80,
        image_size: int = 1024,
        keep_ratio: bool = False,
        resize_in_training: bool = True,
        masks: bool = True,
        sampler: Sampler = random_sampler,
        pre_nms_top_n: Mapping[str, int] | None = None,
        post_nms_top_n: Mapping[str, int] | None = None,
        **others: Any,
    ):
        settle(others, known=())
        super().__init__()
        self.pyramid, self.num_classes, self.image_size, self.keep_ratio = pyramid, num_classes, image_size, keep_ratio
        self.resize_in_training, self.sampler, self.masks = resize_in_training, sampler, masks
        wanted = dict(pre_nms_top_n=pre_nms_top_n, post_nms_top_n=post_nms_top_n)
        given = {name: numbers for name, numbers in wanted.items() if numbers is not None}
        for name, numbers in given.items():  # or a missing one would end the first validation
            if not isinstance(numbers, Mapping) or set(numbers) != {"training", "testing"}:
                raise ValueError(f"expected {name} as dict(training=..., testing=...), found {numbers}")
        self.rpn = RPN(pyramid.channels, **{**self.rpn_options, **given})

    def extract(self, x: Tensor) -> list[ImageFeatures]:
        """Pyramid and proposal network for normalised images (B, 3, H, W) of one size."""
        maps = self.pyramid(x)
        outputs = self.rpn(maps, (x.shape[2], x.shape[3]))
        return [ImageFeatures([m[i:i + 1] for m in maps], output) for i, output in enumerate(outputs)]

    def extract_mixed(self, inputs: Sequence[Tensor]) -> list[ImageFeatures]:
        """Normalised images (3, H, W) of many sizes, those of one size together.

        With frozen norms no image feels another, so nothing has to be padded.
        """
        places: dict[tuple[int, ...], list[int]] = {}
        for i, x in enumerate(inputs):
            places.setdefault(tuple(x.shape[1:]), []).append(i)
        found: dict[int, ImageFeatures] = {}
        for together in places.values():
            found.update(zip(together, self.extract(torch.stack([inputs[i] for i in together]))))
        return [found[i] for i in range(len(inputs))]

    def roi_losses(
        self, all_features: Sequence[ImageFeatures], proposals: Sequence[Tensor], targets: Sequence[dict]
    ) -> dict[str, Tensor]:
        """Losses of what looks into boxes."""
        raise NotImplementedError

    def predict(self, features: ImageFeatures, size: tuple[int, int], paste: bool = True) -> dict[str, Tensor]:
        """What is in one image of height and width `size`: boxes, labels, scores, masks (if any) in its own pixels.

        `paste=False` leaves the masks as they are drawn, (d, 28, 28): on a large image all pasted ones take gigabytes,
        and who needs one after the other calls `paste(masks, boxes, size)` for a few at a time.
        """
        raise NotImplementedError

    def losses(self, inputs: Sequence[Tensor], targets: Sequence[dict]) -> dict[str, Tensor]:
        """The terms of eq. (25.10) for normalised images and fitted targets, whose `classes` run from 0."""
        all_features = self.extract_mixed(inputs)
        truths = [target["boxes"] for target in targets]
        losses = rpn_losses(self.rpn, [features.rpn for features in all_features], truths, self.sampler)
        proposals = [self.rpn.propose(features.rpn)[0] for features in all_features]
        return losses | self.roi_losses(all_features, proposals, targets)

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[dict] | None = None,
        *,
        paste: bool = True,
        checked: bool = False,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, else what is in each image: see the class; `paste` as in `predict`.

        `checked=True` says that a data set has judged the numbers of images and targets, as `CocoFolder` does: a GPU
        is then not waited for to judge them here.
        """
        if self.training and targets is None:
            raise ValueError("a detector in training mode needs targets; call .eval() to detect")
        if self.training and not len(images):
            raise ValueError("a detector in training mode needs an image at least, found none")
        inputs, fitted = prepare(
            images,
            targets if self.training else None,
            side=self.image_size if self.resize_in_training or not self.training else None,
            keep_ratio=self.keep_ratio,
            classes=self.num_classes,
            semantic=self.uses_semantic,
            checked=checked,
        )
        if self.training:
            return self.losses(inputs, [target | dict(classes=target["labels"] - 1) for target in fitted])
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        return [self.predict(features, size, paste) for features, size in zip(self.extract_mixed(inputs), sizes)]
