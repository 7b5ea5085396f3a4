"""The benchmark's Triton kernels, run by Triton's interpreter, against the written-out form."""
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton comes with torch on Linux only")

CHECK = """
import torch
from lesa_nb.layers.blockwise import explicit_rows
from triton_rows import triton_rows

torch.manual_seed(0)
# ragged queries, ragged and whole rows, one pixel
for P, K, V, H, W in [(2, 16, 32, 5, 7), (1, 16, 16, 9, 20), (2, 32, 16, 3, 16), (1, 16, 16, 1, 1)]:
    shapes = [(P, K, H*W), (P, K, H*W), (P, V, H*W), (P, H*W, H), (P, H*W, W)]
    inputs = [torch.randn(*shape, requires_grad=True) for shape in shapes]
    for scale in (1., 30.):                                                       # and logits of hundreds
        loud = [(scale*inputs[0]).detach().requires_grad_(), *inputs[1:]]
        want, got = explicit_rows(*loud), triton_rows(*loud)
        g = torch.randn_like(want)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        for a, b in zip(torch.autograd.grad(got, loud, g), torch.autograd.grad(want, loud, g)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5*max(scale, b.abs().max().item()))
for K, H, words in [(8, 2, "K = 8"), (16, 3, "6 positions, the queries have 4")]:  # each would read what is not there
    try:
        q, k, v = torch.randn(1, K, 4), torch.randn(1, K, 4), torch.randn(1, 16, 4)
        triton_rows(q, k, v, torch.randn(1, 4, H), torch.randn(1, 4, 2))
    except ValueError as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"a call with {words} went through")
"""


def test_kernels_agree_with_the_written_out_form(root):
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(root), str(root/"benchmarks")])}
    done = subprocess.run([sys.executable, "-c", CHECK], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
