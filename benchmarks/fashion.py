"""The part of the study on real pictures: who learns Fashion-MNIST how well, and what disturbs whom?

`python benchmarks/study.py --task fashion` runs it. The networks are those of nbs/3_training/19_three_networks.ipynb,
of about equal size, trained alike; nbs/6_evidence/30_seeds.ipynb draws the result.
"""

import json
import sys
import time

import torch
from common import save
from kept_runs import finished, finished_and_missing, kept_row, published, runs_folder, stem, train_and_keep

from lesa_nb.study.fashion import FASHION_CLASSES, FASHION_LIMITS, fashion_row, read_fashion
from lesa_nb.study.report import score_table
from lesa_nb.study.seeds import verdicts
from lesa_nb.tasks.side_by_side import THREE_TERMS, train_terms

QUESTION = "Real pictures, one recipe: convolution, plain attention, LESA on Fashion-MNIST"
AS_FOUND = "as the files have it; the same for all networks"


def wanted_run(term, seed, fashion, args):
    "What decides a run, besides the code."
    return dict(
        variant=fashion.problem.name,
        term=term,
        net={},
        seed=seed,
        steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        checks=12,
        data=fashion.files,
        device=args.device,
        threads=torch.get_num_threads(),
    )


def gather(runs, fashion, args):
    "Every finished run into one file; what is missing by name."
    data = dict(fashion.files, split=args.split, classes=FASHION_CLASSES)
    old = published("fashion", args)
    rows, missing = finished_and_missing(
        runs,
        lambda path, found: kept_row(path, found, lambda _: fashion.problem.valid, fashion_row),
        known=old["rows"] if old.get("data") == json.loads(json.dumps(data)) else (),
    )
    if rows:
        save("fashion", QUESTION, rows, args, steps=args.steps, data=data, limits=FASHION_LIMITS, not_run=missing)
    return rows, missing


def add_arguments(parser):
    "What only this part of the study asks for."
    parser.add_argument(
        "--data", default="data", help="folder that holds FashionMNIST/raw, as torchvision keeps it; data if not given"
    )
    parser.add_argument("--download", action="store_true", help="get what is missing in --data first")
    parser.add_argument("--split", default=AS_FOUND, help="what to say of the split beside every number")
    parser.add_argument("--train", type=int, help="train on so many pictures, drawn once; all if not given")
    parser.add_argument("--valid", type=int, help="validate on so many; all if not given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3, help="largest learning rate")


def main(args):
    "Train what is not there, seed by seed; measure, gather."
    if args.quick:
        args.train, args.valid, args.seeds = args.train or 256, args.valid or 200, min(args.seeds, 2)
    args.steps = args.steps or (2 if args.quick else 600)
    try:
        fashion = read_fashion(args.data, train=args.train, valid=args.valid, download=args.download)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    folder, began, runs = runs_folder("fashion", args), time.time(), {}
    for seed in range(args.seeds):
        for term in THREE_TERMS:
            wanted = wanted_run(term, seed, fashion, args)
            runs[term, seed] = stem(folder, wanted["variant"], term, {}, seed), wanted

    def kept(term, *, seed):
        "One run, unless it is there."
        path, wanted = runs[term, seed]
        if not args.collect and not finished(path, wanted):
            done = train_and_keep(path, wanted, fashion.problem, args.device)
            print(f"{path.name}: {done['accuracy']:.1%}, {done['seconds']} s", flush=True)

    for seed in range(args.seeds):
        for _ in train_terms(kept, seed=seed):
            gather(runs.values(), fashion, args)
    rows, missing = gather(runs.values(), fashion, args)
    if rows:
        print(score_table(rows), *verdicts(rows, fashion.problem.name), sep="\n")
    print("not run:", *(missing or ["nothing is missing"]), sep="\n  ")
    print(f"{time.time() - began:.0f} s")
