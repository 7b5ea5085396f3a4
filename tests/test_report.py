"""One fault and one report for every kind of data set."""

import pytest

from lesa_nb.data.report import Fault, FaultKinds, Report, printable

KINDS = FaultKinds({"hole": "fatal", "dust": "ignored", "crack": "fatal"})


def test_a_fault_says_where_what_and_what_becomes_of_it():
    fault = KINDS.fault("dust", "a\nb.png", "3 specks")
    assert str(fault) == "a\\nb.png: dust (3 specks)" and fault.outcome == "ignored" and not fault.fatal
    fault = KINDS.fault("hole", "x.json", image_id=0, annotation_id=7)
    assert (
        str(fault) == "x.json, image 0, annotation 7: hole"
        and fault.fatal
        and fault.place == "x.json, image 0, annotation 7"
    )
    assert str(Fault("hole", "x", image_id="a1")) == "x, image a1: hole"
    with pytest.raises(KeyError):
        KINDS.fault("unheard of", "x")


def test_all_fatal_faults_are_kept_and_twenty_of_each_other_kind():
    report = Report("a box", KINDS, "mend the holes")
    assert report.ok and report.format() == "a box\n  ready to train"
    for i in range(30):
        report.add_fault("dust", f"{i}.png")
        report.add(KINDS.fault("hole", f"{i}.jpg", "round"))
    assert (
        report.counts == {"dust": 30, "hole": 30}
        and len(report.faults) == 50
        and len(report.fatal) == 30
        and not report.ok
    )
    with pytest.raises(KeyError):
        report.add_fault("unheard of", "x")


def test_the_report_for_people():
    report = Report("a box", KINDS, "mend the holes")
    report.add_split("train", {"a": 1}, "1 class")
    report.add_split("validation", {"a": 2}, "2 classes")
    report.add_line("seen as a box")
    report.add_fault("dust", "d.png", "fine")
    for i in range(22):
        report.add_fault("hole", f"{i}.jpg", "round", image_id=i)
    lines = str(report).splitlines()
    assert lines[:4] == ["a box", "  train       1 class", "  validation  2 classes", "  seen as a box"]
    assert lines[4:6] == [
        "       22 x hole: fatal; first: 0.jpg, image 0",
        "        1 x dust: ignored; first: d.png (fine)",
    ]
    assert lines[6] == "  fatal: 0.jpg, image 0: hole (round)" and lines[-2] == "  ... and 2 more fatal ones"
    assert lines[-1] == "  not ready: mend the holes" and report.splits["validation"] == {"a": 2}


def test_any_path_can_be_printed():
    assert (
        printable("größe.png") == "größe.png" and printable(b"\xff\n".decode("utf-8", "surrogateescape")) == "\\xff\\n"
    )
