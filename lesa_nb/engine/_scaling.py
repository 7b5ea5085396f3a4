"""The scale of a loss in float16, whose smallest gradients would vanish without it."""
from __future__ import annotations

import math

import torch

from lesa_nb.engine.group import Ranks
from lesa_nb.engine.recipe import Recipe

__all__ = ["LossScaler"]


class LossScaler(torch.amp.GradScaler):
    """PyTorch's GradScaler, on for recipes in float16 and off for all others; it counts the steps it took back.

    float16 knows no number between 0 and 6e-8. So the loss is multiplied by a scale, 65,536 at first, and the gradients
    are divided by it in float32. If that was too much and a gradient overflows, the step is left out and the scale
    halved; 2,000 good steps double it.

    Attributes:
        ranks: The processes of the run, which all see the same gradient: what they do about it must be the same, too.
        skipped: Steps that were left out.
    """

    def __init__(self, recipe: Recipe, device: torch.device, ranks: Ranks = Ranks()):
        super().__init__(device.type, enabled=recipe.precision == "float16")
        self.ranks, self.skipped = ranks, 0

    def skip(self, losses: dict[str, float]) -> bool:
        """After a gradient that is not finite: whether the scale is to blame; then it is halved and the step counted.

        It is not if a loss itself is not finite, in any process, or if there is no scale left to take away.
        """
        if not self.is_enabled() or self.get_scale() <= 1:
            return False
        if self.ranks.all_reduce_max(int(not all(map(math.isfinite, losses.values())))):
            return False
        self.update(self.get_scale()*self.get_backoff_factor())
        self.skipped += 1
        return True

    def numbers(self) -> dict[str, float]:
        """For the log of a run: scale and steps left out; nothing where the loss is not scaled."""
        return dict(loss_scale=self.get_scale(), skipped=self.skipped) if self.is_enabled() else {}

    def state_dict(self) -> dict[str, float]:
        """GradScaler's, and the number of skipped steps; empty where the loss is not scaled."""
        return dict(super().state_dict(), skipped=self.skipped) if self.is_enabled() else {}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Go on from there."""
        if self.is_enabled():
            super().load_state_dict({name: value for name, value in state_dict.items() if name != "skipped"})
            self.skipped = int(state_dict["skipped"])
