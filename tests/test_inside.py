"""What is asked of a trained network of the study, each question against an answer that is known beforehand."""
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lesa_nb.data.pictures import CELL, Twins, chunks, find_twin
from lesa_nb.layers.context import Context
from lesa_nb.study._onecycle import accuracy
from lesa_nb.study.inside import _looking, _mark_cells, _mistakes, _read_marks, _readable, study_row
from lesa_nb.study.report import confusions, mean_inside, name_of, result_table, score_table, show_learning
from lesa_nb.study.small import TERM_NAMES, SmallNet, train_small, twin_problem


@pytest.fixture(scope="module")
def twins():
    return find_twin(1024, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def few(twins):
    return Twins(*(tensor[:128] for tensor in twins))


@pytest.fixture(scope="module")
def row(few):
    return study_row(train_small(twin_problem(valid=64), "lesa", steps=2, batch_size=8, checks=1), few)


def test_a_mark_has_nine_cells_of_which_five_are_lit(twins):
    cells = _mark_cells(twins.corners, 12)
    assert cells.sum((2, 3)).unique().tolist() == [9]
    lit = F.avg_pool2d(twins.images.amax(1), CELL) > .35
    assert (cells & lit[:, None]).sum((2, 3)).unique().tolist() == [5]  # an L has five


def test_the_reader_reads_what_is_there_and_nothing_else(twins):
    torch.manual_seed(0)
    turns = twins.turns[:, 1]
    assert _readable(F.one_hot(turns, 4).float(), turns, 4) == 1
    assert abs(_readable(torch.randn(1024, 20), turns, 4) - .25) < .1


def test_where_no_position_knows_its_neighbours_no_turn_can_be_read(twins):
    torch.manual_seed(0)
    assert abs(_read_marks(SmallNet("conv").eval(), twins)[0]["own"] - .25) < .1  # after the stem: chance


def test_whose_scores_are_all_zero_looks_at_everyone_alike(few):
    flat = SmallNet("attention").eval()
    for block in flat.blocks:
        nn.init.zeros_(block.conv2.context.norm_scores.weight)
    for seen in _looking(flat, few):
        assert list(seen.values()) == pytest.approx([5/144]*4, abs=1e-4)
    assert _looking(SmallNet("conv").eval(), few) == [{}, {}]


def test_a_network_built_to_look_at_white_looks_at_the_cue(few):
    class White(Context):
        "Whoever asks: ten times the weight for cells that are red, green and blue."
        def weights(self, x_BCHW):
            white = (x_BCHW.amin(1) > .3).flatten(1)[:, None, None]
            return (math.log(10)*white).expand(-1, 4, 144, -1).softmax(-1)

    class Seer(nn.Module):
        "Cells of the picture, looked at by one context term."
        def __init__(self):
            super().__init__()
            self.stem, self.term = nn.AvgPool2d(CELL), SmallNet("attention").blocks[0].conv2
            self.term.context.__class__ = White

        def middles(self, images):
            cells = self.stem(images)
            yield self.term, cells, cells

    seen = _looking(Seer().eval(), few)[0]
    # 5 cells of weight 10 and 139 of weight 1
    assert [seen["twin to cue"], seen["other to cue"]] == pytest.approx([50/189]*2, abs=1e-4)
    assert [seen["cue to twin"], seen["cue to other"]] == pytest.approx([5/189]*2, abs=1e-4)


def test_a_row_fits_into_json_and_its_numbers_agree(row, few):
    assert json.loads(json.dumps(row)) == row
    confusion = row["inside"]["mistakes"]["confusion"]
    assert sum(map(sum, confusion)) == len(few.labels)
    right = sum(confusion[i][i] for i in range(3))/len(few.labels)
    again = train_small(twin_problem(valid=64), "lesa", steps=2, batch_size=8, checks=1).model
    assert accuracy(again, chunks(few, 128)) == pytest.approx(right, abs=1e-6)
    # the mark that is not turned is the twin
    assert row["inside"]["mistakes"]["chosen_when_turned"]["0"] == pytest.approx(right, abs=1e-6)


def test_pictures_that_are_no_twins_have_a_confusion_matrix_only():
    torch.manual_seed(0)
    net = SmallNet("conv", classes=10, channels=1, size=8, patch=2).eval()
    found = _mistakes(net, (torch.rand(20, 1, 8, 8), torch.randint(10, (20,))))
    assert list(found) == ["confusion"] and sum(map(sum, found["confusion"])) == 20


def test_names_tables_and_means(row):
    assert name_of(dict(term="conv", blocks=8)) == "convolution, 8 blocks" and name_of(dict(term="lesa")) == "LESA"
    second = dict(row, seed=1, accuracy=row["accuracy"] + .1)
    table = score_table([row, second]).splitlines()
    assert len(table) == 2 and f"{row['accuracy'] + .05:.1%}" in table[1] and "2x8" in table[1]
    mean = mean_inside([row, second], row["variant"], "LESA", "shares", 0, "gate", "mean")
    assert mean == pytest.approx(row["inside"]["shares"][0]["gate"]["mean"])
    assert confusions([row, second], row["variant"], "LESA").shape == (2, 3, 3)
    with pytest.raises(ValueError, match="no run of convolution"):
        mean_inside([row], row["variant"], TERM_NAMES["conv"], "shares")
    fig = show_learning([row, second], title="two seeds")
    assert [ax.get_title() for ax in fig.axes] == [row["variant"]] and len(fig.axes[0].lines) == 2


def test_the_table_of_one_run_each():
    made = dict(accuracy=.8765, chance=.1, parameters=12345, steps=40, seconds=1.26)
    lines = [line.split() for line in result_table({"p": {"conv": made}}).splitlines()]
    assert lines == [["problem", "network", "accuracy", "chance", "weights", "steps", "seconds"],
                     ["p", "convolution", "87.6%", "10.0%", "12,345", "40", "1.3"]]
