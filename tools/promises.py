"""The page of promises: what must hold when things go wrong, the tests that prove it, and how they ended last.

    python tools/promises.py        # write nbs/promises.md from the table below and tools/results/promises.json

`make test-all` writes how the tests ended into tools/results/promises.json, and the page; nobody writes either by hand.
"""

import ast
import datetime
import json
import sys
from pathlib import Path

import project

#: what is tried, what must hold, and the tests that prove it
PROMISES = (
    (
        "images of 32 to 256 pixels in steps of 7, square, rectangular and odd, up to 800 x 1333",
        "every one runs; nothing is resized in silence",
        "test_any_size.py::test_every_size test_any_size.py::test_full_networks test_any_size.py::test_a_coco_image",
    ),
    (
        "state dicts in the authors' layout, with and without `module.`, a key missing, one too many, a wrong shape",
        "read, or refused with the keys listed and the module unchanged",
        "test_published.py::test_wrappings test_published.py::test_refusals",
    ),
    (
        "a position table resized to its own size, and by PyTorch's own stretch",
        "bitwise the same; equal to `interpolate`",
        "test_position.py::test_resizing_to_itself_changes_nothing_and_shapes_are_true "
        "test_position.py::test_the_stretch_is_pytorchs_own",
    ),
    (
        "every way to attend against the explicit one: output, gradients, statistics; training, inference, frozen",
        "1e-5 in float32, 1e-10 in float64, 2e-2 in bfloat16",
        "test_streaming.py::test_listed_shapes test_streaming.py::test_random_shapes "
        "test_streaming.py::test_bf16_autocast",
    ),
    (
        "200 steps of bfloat16 autocast; `torch.compile`",
        "finite; no graph breaks",
        "test_streaming.py::test_200_steps_of_autocast test_streaming.py::test_compile_without_graph_breaks",
    ),
    (
        "a folder of classes with 8 faults",
        "8 of 8 by path and reason; training on it names the file",
        "test_verify.py::test_eight_faults_come_back_by_path_and_reason "
        "test_verify.py::test_training_on_the_faults_names_the_file",
    ),
    (
        "a COCO folder with 11 faults",
        "left out and counted, or fatal with a name; 20 steps finite",
        "test_coco.py::test_all_eleven_faults_train_on "
        "test_train_coco.py::test_twenty_steps_on_a_faulty_folder_are_finite_and_go_down",
    ),
    (
        "scoring without detections; an epoch of images without objects",
        "AP 0; a finite loss",
        "test_coco_eval.py::test_nothing_found_is_zero_and_nothing_to_find_is_nan "
        "test_train_coco.py::test_an_epoch_without_objects_is_finite_and_reaches_every_weight",
    ),
    (
        "the truth fed back as detections, through resize and paste",
        "box AP 1, mask AP at least 0.95",
        "test_coco_eval.py::test_truth_fed_back_is_perfect_in_every_type "
        "test_train_coco.py::test_truth_through_resize_and_paste_is_found",
    ),
    (
        "a file for COCO's server",
        "original category ids, scores in 0..1, masks of the image's size, at most 100 an image",
        "test_coco_eval.py::test_testdev_file",
    ),
    (
        "`kill -9` at 50 random moments, many during a save; a full disk during a save",
        "all go on; the old checkpoint is intact",
        "test_runs.py::test_killed_at_50_random_moments test_runs.py::test_full_disk "
        "test_io.py::test_a_full_disk_keeps_the_old_file",
    ),
    (
        "epochs in one go against two goes, and a stop in mid-epoch",
        "bitwise equal: weights, optimizer, averages, random state, order",
        "test_runs.py::test_two_and_two_epochs_make_four test_runs.py::test_stopped_in_mid_epoch "
        "test_train_coco.py::test_two_epochs_equal_one_and_one",
    ),
    (
        "SIGTERM while training, validating, starting",
        "a checkpoint to go on from within 30 s, status 143",
        "test_train_cli.py::test_sigterm_while_training test_train_cli.py::test_sigterm_while_starting "
        "test_runs.py::test_stopped_while_validating",
    ),
    (
        "a NaN at step 7; a rate that diverges",
        "stops, and names step, rate, losses and images; the last good checkpoint is clean",
        "test_runs.py::test_nan_at_step_7 test_runs.py::test_diverging_rate",
    ),
    (
        "two processes on 1,003 images; one that dies",
        "equal to one process to 1e-6; all end within a minute",
        "test_runs.py::test_metrics_over_two_processes_equal_one test_runs.py::test_a_process_that_dies_ends_the_other",
    ),
    (
        "frozen batch norms, 10 steps; batch norms over two processes",
        "statistics bitwise unchanged; equal to one large batch to 1e-5",
        "test_runs.py::test_frozen_norms_keep_still_for_10_steps test_streaming.py::test_two_ranks_equal_one_batch",
    ),
    (
        "a `.pth` that runs code, an archive that leads elsewhere, random damage to files of weights",
        "refused with the reason; nothing is run, nothing written",
        "test_published.py::test_code_in_a_checkpoint_does_not_run test_io.py::test_reading_runs_no_code "
        "test_runs.py::test_a_checkpoint_runs_no_code test_load.py::test_random_damage_is_a_sentence_or_nothing",
    ),
    (
        "wheel and source archive in fresh environments, oldest and newest Python",
        "install and import; no plotting, no COCO tools, no network",
        "test_house_package.py::test_fresh_environments "
        "test_house_package.py::test_importing_brings_in_no_plotting_no_network",
    ),
    (
        "paths with spaces, quotes and letters of all kinds; no home, no display, nobody who reads, a full disk",
        "one clear line, no traceback",
        "test_cli.py::test_in_a_process_of_its_own_without_home_or_display "
        "test_closed_output.py::test_a_full_disk_behind_the_answer_is_one_line "
        "test_closed_output.py::test_closed_output_is_no_traceback",
    ),
    (
        "package, README and links made from the notebooks once more",
        "nothing changes",
        "test_house.py::test_driver_names_files_that_are_out_of_date",
    ),
    (
        "a notebook that fails, is skipped, or hangs",
        "the test command fails and names it",
        "test_house.py::test_driver_fails_and_counts test_house.py::test_driver_stops_a_notebook_that_hangs",
    ),
    (
        "random command lines: every option of every command with odd values, on full disks, without a home",
        "status 0, 1 or 2, at most three lines, nothing half made or overwritten",
        "test_cli_fuzz.py::test_random_lines test_cli_fuzz.py::test_two_thousand_random_lines",
    ),
    (
        "Ctrl-C and SIGTERM at random moments of every command",
        "ends within 10 s, status 130 or 143, nothing half made",
        "test_interrupts.py::test_a_command_that_is_asked_to_end "
        "test_interrupts.py::test_every_command_at_random_moments",
    ),
    (
        "COCO files with anything in them, scored here and by pycocotools",
        "equal to 1e-6, or refused with the entry's name",
        "test_differential.py::test_pycocotools_says_the_same_or_the_entry_is_named",
    ),
)
_HEAD = """# Promises
> What must hold when things go wrong, and the test that proves it.

Written by `make test-all` (tools/promises.py): each row with its tests, how they ended when all tests were last run,
and what they measured. A row without a date has not been run since its tests were named here.
"""


def faults(root=project.ROOT):
    "Rows of the list of faults: name, right value and tests, as tests/test_faults.py keeps and marks them."
    tree = ast.parse((root / "tests" / "test_faults.py").read_text(encoding="utf-8"))
    rows = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROWS"
    )
    found = {name: [] for name in rows}
    for path in sorted((root / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for mark in getattr(node, "decorator_list", ()):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    for name in map(ast.literal_eval, mark.args):
                        found.setdefault(name, []).append(f"{path.name}::{node.name}")
    return [(name, rows.get(name, ""), tests) for name, tests in found.items()]


def _before(root):
    "What the first version answered to a row of the list of faults, as tools/faults_before.py wrote it down."
    file = root / project.RESULTS / "faults_before.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    told = {}
    for name, one in found.items():
        said = one.get("answer") or f"not reproduced: {one['why']}"
        told[name] = " ".join(said.split()).replace("|", "\\|").replace("<", "&lt;")
    return told


def tests(root=project.ROOT):
    "All tests that the page names."
    named = {test for _, _, names in PROMISES for test in names.split()}
    return named | {test for _, _, names in faults(root) for test in names}


def _last(names, results):
    "How tests ended last, in a few words."
    known = [results[name] for name in names if name in results]
    if len(known) < len(names):
        return f"{len(known)} of {len(names)} tests run" if known else "not run yet"
    failed, date = sum(one["failed"] for one in known), min(one["date"] for one in known)
    figures = [f"{key} {value}" for one in known for key, value in one["figures"].items()]
    count = sum(one["passed"] for one in known)
    return "; ".join([f"**{failed} failed**" if failed else f"{count} passed, {date}", *figures])


def page(results, root=project.ROOT):
    "The page, from how the tests ended."
    lines = [_HEAD, "| | tried | must hold | last run | tests |", "|---|---|---|---|---|"]
    for number, (tried, must, names) in enumerate(PROMISES, 1):
        names = names.split()
        listed = "<br>".join(f"`{name}`" for name in names)
        lines.append(f"| {number} | {tried} | {must} | {_last(names, results)} | {listed} |")
    lines += ["\n## Faults of other libraries that must not be here\n"]
    lines += ["What the first version of this package answered was asked of it by `python tools/faults_before.py`.\n"]
    lines += ["| | right | on the first version | last run | tests |", "|---|---|---|---|---|"]
    before = _before(root)
    for name, right, names in faults(root):
        listed = "<br>".join(f"`{test}`" for test in names)
        last = _last(names, results) if names else "no test"
        lines.append(f"| {name} | {right} | {before.get(name, '')} | {last} | {listed} |")
    return "\n".join(lines) + "\n"


def record(ended, root=project.ROOT):
    """Write down how tests ended, and the page. Does nothing in a project without one.

    ended: (node id, whether it passed, what it measured) of every test that was run.
    """
    file = root / project.RESULTS / "promises.json"
    if not file.exists():
        return
    named, results, now = tests(root), json.loads(file.read_text(encoding="utf-8")), {}
    for node, passed, figures in ended:
        name = node.partition("[")[0].rpartition("/")[2]
        if name in named:
            one = now.setdefault(name, dict(passed=0, failed=0, date=f"{datetime.date.today()}", figures={}))
            one["passed" if passed else "failed"] += 1
            one["figures"].update(figures)
    results = {name: one for name, one in sorted({**results, **now}.items()) if name in named}
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (root / "nbs" / "promises.md").write_text(page(results, root), encoding="utf-8")


if __name__ == "__main__":
    record([], Path(sys.argv[1]) if len(sys.argv) > 1 else project.ROOT)
