"""Whether autocast is on. Compiled code asks here: PyTorch 2.10 ends a graph where it is asked itself."""
import torch


@torch.compiler.assume_constant_result
def knows_autocast(kind: str) -> bool:
    """Whether there is autocast for a kind of device, such as "cpu"; for meta tensors, for instance, there is none."""
    return torch.amp.is_autocast_available(kind)


def autocasts(kind: str) -> bool:
    """Whether autocast is on for a kind of device."""
    return knows_autocast(kind) and torch.is_autocast_enabled(kind)
