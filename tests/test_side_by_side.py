"""Three terms side by side: one function, which adds nothing to a run and makes none before it is asked for."""
import pytest

from lesa_nb.models.resnet import TERMS
from lesa_nb.study.small import TERM_NAMES
from lesa_nb.tasks.side_by_side import THREE_TERMS, train_terms


def test_every_term_gets_the_same_problem_and_the_same_recipe():
    seen = []

    def train(folder, term, *, seed, lr=.1):
        seen.append((folder, term, seed, lr))
        return len(seen)

    assert dict(train_terms(train, "pictures", seed=3, lr=.2)) == dict(zip(THREE_TERMS, (1, 2, 3)))
    assert seen == [("pictures", term, 3, .2) for term in THREE_TERMS]


def test_a_run_is_handed_over_before_the_next_begins():
    begun = []
    runs = train_terms(begun.append, terms=("lesa", "conv"))
    assert not begun
    assert next(runs) == ("lesa", None) and begun == ["lesa"]
    assert [term for term, _ in runs] == ["conv"] and begun == ["lesa", "conv"]


def test_what_a_run_cannot_do_is_not_hidden():
    def train(term, *, steps):
        raise ValueError(f"{term}: need at least 1 step, got {steps}")

    with pytest.raises(ValueError, match="conv: need at least 1 step, got 0"):
        list(train_terms(train, steps=0))


def test_the_three_are_terms_of_a_resnet_and_have_one_name_everywhere():
    assert THREE_TERMS.keys() == TERMS.keys()
    assert all(TERM_NAMES[term] == name for term, name in THREE_TERMS.items())
