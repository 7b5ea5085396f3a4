"""Weights and inputs that are a function of a name and a shape, so that recorded results need no weights beside them.

Every number comes from `np.random.default_rng(seed).standard_normal`: drawn in float64 in C order, rounded to float32,
and scaled in float32. The seed of a weight is the CRC-32 of its name in the authors' state dict.
"""
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent/"golden"
SAMPLE = 128  # numbers kept of each recorded result


def normal(seed, shape):
    "Standard normal float32 numbers."
    return np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32)


def image(seed, shape):
    "An input picture, or a fixed direction to differentiate along."
    return torch.from_numpy(normal(seed, shape))


def value(name, shape):
    "The weight of this name and shape."
    z, last = normal(zlib.crc32(name.encode()), shape), name.rpartition(".")[2]
    if last == "running_mean" or last.endswith("bias"):
        return np.float32(0.1)*z
    if last == "running_var":
        return np.float32(1) + np.float32(0.1)*np.abs(z)
    if last in ("relative", "rel_height", "rel_width"):
        return np.float32(shape[-1]**-0.5)*z
    if len(shape) > 1:
        return np.float32(float(np.prod(shape[1:]))**-0.5)*z
    return np.float32(1) + np.float32(0.1)*z


def filled(tensors):
    "A new state dict: floating-point tensors by the rule above, the others as they are."
    return {name: torch.from_numpy(np.ascontiguousarray(value(name, t.shape))) if t.is_floating_point() else t.clone()
            for name, t in tensors.items()}


def places(n):
    "The scattered places at which a recorded result of n numbers is kept."
    return np.arange(min(n, SAMPLE))*7919 % n


def record(array):
    "What is kept of a result: its largest absolute value, its norm, some of its numbers."
    flat = np.asarray(array, dtype=np.float64).ravel()
    kept = np.array([np.abs(flat).max(), np.linalg.norm(flat), *flat[places(flat.size)]])
    return kept if np.asarray(array).dtype == np.float64 else kept.astype(np.float32)


def error(tensor, recorded):
    "The distance to a record, relative to the record's largest value and to its norm; the worse of the two."
    flat = tensor.detach().double().numpy().ravel()
    peak, norm, *some = recorded.astype(np.float64)
    assert len(some) == min(flat.size, SAMPLE), "the record is of a tensor of another size"
    return max(np.abs(flat[places(flat.size)] - some).max()/peak, abs(np.linalg.norm(flat) - norm)/norm)
