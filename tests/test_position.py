"""Offset tables at their edges: what does not fit, one row, one position, resizing to itself, the first scale."""
import pytest
import torch
import torch.nn.functional as F

from lesa_nb.layers.position import (
    FactoredTable,
    FlatTable,
    _rel_to_abs,
    _stretch_offsets,
    _unfold_offsets,
    fit_offsets,
    fold_offsets,
)


def test_a_single_position_has_a_single_offset():
    assert torch.equal(_rel_to_abs(torch.tensor([[7.]])), torch.tensor([[7.]]))


@pytest.mark.parametrize(("call", "words"), [
    (lambda: _rel_to_abs(torch.zeros(5, 10)), "need R = 2N-1 = 9 offsets"),
    (lambda: _stretch_offsets(torch.zeros(3, 12), 7), "an odd number"),
    (lambda: fit_offsets(torch.zeros(3, 12), 7), "an odd number"),
    (lambda: _unfold_offsets(torch.zeros(2, 28), (3, 5)), "need 2HW-1 = 29 columns"),
    (lambda: fold_offsets(torch.zeros(2, 5, 6)), "an odd number"),
    (lambda: FactoredTable((3, 5), 4).scores(torch.zeros(2, 3, 4, 14), None, (3, 5)), "the tensor has 14"),
    (lambda: FlatTable((3, 5), 4, 8).scores(*torch.zeros(2, 2, 3, 4, 14), (3, 5)), "the tensor has 14"),
    (lambda: FlatTable((3, 5), 4, 8).values(torch.zeros(2, 3, 15, 15), (2, 4)), "has 8 positions, the tensor has 15"),
])
def test_what_does_not_fit_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_one_row_or_one_column_shares_nothing():
    flat = torch.randn(2, 17)
    assert torch.equal(_unfold_offsets(flat, (1, 9))[:, 0], flat)
    assert torch.equal(_unfold_offsets(flat, (9, 1))[..., 0], flat)


def test_a_smaller_map_reads_the_middle_of_the_factored_table():
    torch.manual_seed(0)
    table, cut = FactoredTable((3, 5), 4), FactoredTable((2, 4), 4)
    cut.load_state_dict({name: t[1:-1] for name, t in table.state_dict().items()})
    q = torch.randn(2, 3, 4, 8)
    torch.testing.assert_close(table.scores(q, q, (2, 4))[0], cut.scores(q, q, (2, 4))[0])


def test_resizing_to_itself_changes_nothing_and_shapes_are_true():
    factored, flat = FactoredTable((14, 14), 16), FlatTable((14, 14), 16, 32)
    same = factored.resized((14, 14))
    assert torch.equal(same.height, factored.height) and torch.equal(same.width, factored.width)
    assert factored.resized((9, 20)).width.shape == (39, 16)
    assert torch.equal(flat.resized((14, 14)).table, flat.table)
    assert flat.resized((9, 20)).table.shape == (64, 2*9*20 - 1)


def test_scale_at_the_start():
    torch.manual_seed(0)
    assert FlatTable((14, 14), 16, 32).table.std().item() == pytest.approx(32**-.5, abs=.01)
    assert FactoredTable((14, 14), 16).height.std().item() == pytest.approx(16**-.5, abs=.05)
    steps = [dy*14 + dx for dy in range(-13, 14) for dx in range(-13, 14)]
    assert len(set(steps)) == 391 and {steps.count(step) for step in steps} == {1, 2}


@pytest.mark.parametrize(("m", "n"), [(2, 3), (14, 28), (28, 14), (7, 5), (64, 80), (1, 4)])
def test_the_stretch_is_pytorchs_own(m, n):
    "A product with a matrix, deterministic on a GPU, in place of an interpolation, which is not; gradients too."
    torch.manual_seed(m)
    table = torch.randn(3, 5, 2*m - 1, requires_grad=True)
    rows = F.interpolate(table.flatten(0, 1)[None], size=2*n - 1, mode="linear", align_corners=True)
    want = rows[0].unflatten(0, (3, 5))
    got, g = _stretch_offsets(table, n), torch.randn(3, 5, 2*n - 1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=3e-5)
    torch.testing.assert_close(torch.autograd.grad(got, table, g)[0], torch.autograd.grad(want, table, g)[0],
                               rtol=1e-4, atol=1e-4)
    assert torch.equal(got[..., n - 1], table[..., m - 1])  # zero on zero
