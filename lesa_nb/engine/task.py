"""What a run must be told: the network, the samples, the losses, the scores, and the recipe."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from lesa_nb.engine.recipe import Recipe

__all__ = ["Task"]


class Task(NamedTuple):
    """Something to learn, and by which recipe: what differs between classification and detection.

    Attributes:
        metadata: The network and its classes, in JSON's types; a checkpoint of another network is refused.
        recipe: How it is trained; a run has no other one.
        build: Makes the network.
        train: `train[(epoch, index)]` is a sample that seed, epoch and index decide. A method `sample_name(index)`, of
            this and of `valid`, names the samples in messages, and tells a run that its data have changed; so does
            `content`, a hash of what is known of them, if they have one.
        valid: `valid[index]` is a sample.
        collate: Samples -> a batch.
        losses: Of a network and a batch, by name; their sum is trained. The batch lies on the network's device, in its
            type.
        validate: Scores of a network over the batches of all processes, by name.
        batch_names: Of the samples in a batch, for messages.
        score: Name of the score that decides which weights are best; larger is better. Of equal ones, the smaller score
            called "loss" decides.
        valid_batch: Samples at once in validation.
        fixed_size: All images that the network sees have one size, so a GPU may try out which convolution is fastest.
    """

    metadata: dict[str, Any]
    recipe: Recipe
    build: Callable[[], nn.Module]
    train: Any
    valid: Any
    collate: Callable[[list], Any]
    losses: Callable[[nn.Module, Any], dict[str, Tensor]]
    validate: Callable[[nn.Module, Iterable[Any]], dict[str, float]]
    batch_names: Callable[[Any], list[str]]
    score: str
    valid_batch: int = 32
    fixed_size: bool = False
