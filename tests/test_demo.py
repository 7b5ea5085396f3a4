"""The demo in a handful of steps: every file is written, read again, and holds what it says."""
import json

import pytest
import torch
from PIL import Image

from lesa_nb.cli import app as cli

from lesa_nb.study import small as study
from lesa_nb.look.maps import lesa_layers
from lesa_nb.io.tensors import read_metadata

TASKS = {"digits": "digits", "find the twin": "twin"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    "The folder that a quick demo has written, and what it printed."
    import contextlib
    import io
    folder = tmp_path_factory.mktemp("out")/"a demo; ünd so"
    said, bars = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(bars): status = cli.main(["demo", "--quick", "--out", str(folder)])
    assert status == 0
    return folder, said.getvalue(), bars.getvalue()


def test_everything_is_written(demo):
    folder, said, bars = demo
    weights = {f"{name}_{term}.safetensors" for name in TASKS.values() for term in study.INNER}
    figures = {"learning_curves.png", "explain.png", "explain_twin.png"}
    assert {path.name for path in folder.iterdir()} == weights | figures | {"metrics.json"}
    for name in figures:
        with Image.open(folder/name) as figure:
            figure.load()
            assert figure.format == "PNG" and min(figure.size) > 300
            assert len(figure.convert("L").getcolors()) > 50  # not a blank page


def test_metrics_tell_the_run(demo):
    folder, said, bars = demo
    metrics = json.loads((folder/"metrics.json").read_text())
    assert metrics["seed"] == 0 and metrics["steps"] == 4 and metrics["seconds"] > 0
    assert metrics["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert metrics["results"].keys() == TASKS.keys()
    for task, facts in metrics["results"].items():
        assert facts.keys() == study.INNER.keys()
        counts = [f["parameters"] for f in facts.values()]
        assert max(counts) < 1.1*min(counts)
        for term, f in facts.items():
            assert 0 <= f["accuracy"] <= 1 and f["steps"] == 4
            assert f"{f['accuracy']:.1%}" in said and f"{f['parameters']:,}" in said
            assert f"{task}, {study.TERM_NAMES[term]}" in bars


def test_a_quick_run_claims_nothing(demo):
    folder, said, bars = demo
    assert "nothing was learned" in said
    for word in ("ahead", "behind", "tie"): assert word not in said


def test_weights_give_the_accuracy_that_they_claim(demo):
    folder, said, bars = demo
    tasks = {"digits": study.digit_task(), "twin": study.twin_task(valid=64)}
    for name, task in tasks.items():
        for term in study.INNER:
            model, facts = study.load_small(folder/f"{name}_{term}.safetensors")
            assert facts == read_metadata(folder/f"{name}_{term}.safetensors")
            assert study.evaluate(model, study.chunks(task.valid, 128)) == pytest.approx(facts["accuracy"], abs=1.5/facts["pictures"])
            assert len(lesa_layers(model)) == (2 if term == "lesa" else 0)


def test_explain_takes_every_lesa_network_of_the_demo(demo, tmp_path, capsys):
    folder, said, bars = demo
    Image.effect_noise((70, 50), 60).save(tmp_path/"photo.png")
    for name in TASKS.values():
        status = cli.main(["explain", str(tmp_path/"photo.png"), "--weights", str(folder/f"{name}_lesa.safetensors"), "--out", str(tmp_path/f"{name}.png")])
        assert status == 0 and "UNTRAINED" not in capsys.readouterr().out
        assert (tmp_path/f"{name}.png").is_file()


def test_a_longer_run_reports_findings_from_its_numbers(monkeypatch, capsys):
    facts = dict(task="t", chance=1/3, pictures=1000, seed=5, parameters=1, steps=300, seconds=1.)
    results = {"t": {term: dict(facts, accuracy=a) for term, a in dict(conv=.97, attention=.33, lesa=.90).items()}}
    made = dict(results=results, findings=[study.findings(f) for f in results.values()], seconds=9.)
    monkeypatch.setattr(study, "demo", lambda *args, **options: made)
    assert cli.main(["demo"]) == 0
    said = capsys.readouterr().out
    assert "LESA is behind" in said and "-7.0 points" in said and "guessing (33.3%): plain attention 33.0%" in said


def test_demo_without_scikit_learn_says_what_to_install(monkeypatch, tmp_path, capsys):
    import sys
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert cli.main(["demo", "--quick", "--out", str(tmp_path/"out")]) == 1
    assert "pip install 'lesa_nb[demo]'" in capsys.readouterr().err


def test_demo_into_a_file_is_refused(tmp_path, capsys):
    (tmp_path/"out").write_text("in the way")
    assert cli.main(["demo", "--quick", "--out", str(tmp_path/"out")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(tmp_path/"out") in err
