"""The study's file, read: its limits, names, tables, means over the seeds, and learning curves."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lesa_nb.study.seeds import scores, spread
from lesa_nb.study.small import TERM_NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LIMITS", "confusions", "mean_inside", "name_of", "name_ticks", "result_table", "score_table",
           "show_learning", "show_wrong", "wrong_answers"]

#: What the generated problem cannot show; printed beside every result.
LIMITS = (
    "Convolutions of 8 blocks reach across the whole map; where they fail, the training did not find the way: "
    "optimisation, not reach.",
    "A convolution and then an attention block has both ingredients: the task shows that both are needed, not that "
    "the gate is.",
    "Recipes were chosen for LESA, which can still get stuck (see the range over the seeds); the controls got no "
    "search of their own.",
    "Marks are aligned with the stem's cells unless the variant says otherwise.",
    "Attention shows where coloured marks look, twin or not: at the white one. A map of attention is no proof that "
    "the task was solved that way.",
    "Pictures of 64 pixels and networks of 32 thousand weights: nothing here is about ImageNet.",
)


def name_of(net: dict[str, Any]) -> str:
    """What a network is called in tables. net: its term, and its blocks where they are not two."""
    return TERM_NAMES[net["term"]] + (f", {net['blocks']} blocks" if "blocks" in net else "")


def _rows_of(rows: Sequence[dict], variant: str, name: str) -> list[dict]:
    return [row for row in rows if (row["variant"], row["name"]) == (variant, name)]


def result_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Accuracy, weights and time of every run, one line each. results: problem -> term -> metadata of a run."""
    lines = [f"{'problem':<16}{'network':<18}{'accuracy':>9}{'chance':>9}{'weights':>9}{'steps':>7}{'seconds':>9}"]
    for problem, runs in results.items():
        for term, f in runs.items():
            lines.append(f"{problem:<16}{TERM_NAMES[term]:<18}{f['accuracy']:>9.1%}{f['chance']:>9.1%}"
                         f"{f['parameters']:>9,}{f['steps']:>7}{f['seconds']:>9.1f}")
    return "\n".join(lines)


def score_table(rows: Sequence[dict]) -> str:
    """Mean, interval and range over the seeds of every network on every variant, one line each.

    rows: from `lesa_nb.study.inside.study_row`.
    """
    lines = [f"{'task':<18} {'network':<28}{'accuracy':>9}{'+-':>7}{'range':>15}{'seeds':>7}{'steps':>9}{'chance':>8}"
             f"{'weights':>11}{'CPU s':>7}"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        for name, by_seed in scores(rows, variant).items():
            own = _rows_of(rows, variant, name)
            s, cpu = spread(list(by_seed.values())), spread([row["cpu_seconds"] for row in own]).mean
            half, recipe = f"{100*s.half:.1f}" if s.n > 1 else "-", f"{own[0]['steps']}x{own[0]['batch_size']}"
            reach = f"{100*s.low:.1f} to {100*s.high:.1f}"
            lines.append(f"{variant:<18} {name:<28}{s.mean:>9.1%}{half:>7}{reach:>15}{s.n:>7}{recipe:>9}"
                         f"{own[0]['chance']:>8.1%}{own[0]['parameters']:>11,}{cpu:>7.3g}")
    return "\n".join(lines)


def mean_inside(rows: Sequence[dict], variant: str, name: str, *path: str | int) -> float:
    """One number from inside a network, averaged over the seeds. path: the keys that lead to it in a row."""
    values = []
    for row in _rows_of(rows, variant, name):
        value = row["inside"]
        for step in path:
            value = value[step]
        values.append(value)
    if not values: raise ValueError(f"no run of {name} on {variant!r}")
    return sum(values)/len(values)


def confusions(rows: Sequence[dict], variant: str, name: str) -> Tensor:
    """The confusion matrices of one network, seed by seed: (seeds, labels, answers)."""
    return torch.tensor([row["inside"]["mistakes"]["confusion"] for row in _rows_of(rows, variant, name)]).float()


def show_learning(rows: Sequence[dict], title: str | None = None) -> "Figure":
    """Accuracy on the way, one panel for each variant: the mean of the seeds, and a band around all of them.

    Networks of two blocks only. title: the finding.
    """
    from lesa_nb.look.figures import COLORS, new_figure, show_bars

    drawn = zip(TERM_NAMES.values(), ("conv", "attention", "lesa", "lesa", "conv"), ("-", "-", "-", "--", "--"))
    lines = {name: (COLORS[key], dashes) for name, key, dashes in drawn}  # as bars of the same names have them
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    if not variants:
        return show_bars({"not run": None}, title=title and f"{title}: not run", ylabel="accuracy")
    width = max(3.8, min(8, 2.6*len(variants)))
    fig, axes = new_figure(1, len(variants), size=(width, 2.5), title=title, sharey=True, squeeze=False)
    for ax, variant in zip(axes[0], variants):
        for name in scores(rows, variant):
            if name not in lines:
                continue
            hue, dashes = lines[name]
            runs = torch.tensor([row["curve"] for row in _rows_of(rows, variant, name)])
            steps, accuracies = runs[0, :, 0], runs[..., 1]
            ax.plot(steps, accuracies.mean(0), color=hue, ls=dashes, lw=1.6, label=name)
            if len(runs) > 1:
                ax.fill_between(steps, accuracies.amin(0), accuracies.amax(0), color=hue, alpha=.2, lw=0, aa=False)
        chance = next(row["chance"] for row in rows if row["variant"] == variant)
        ax.axhline(chance, color=COLORS["neutral"], ls=":", label="guessing")
        ax.set_title(variant, fontsize=9)
        ax.set(xlabel="step", ylim=(0, 1.02))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("accuracy")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    return fig


def wrong_answers(rows: Sequence[dict], variant: str, names: Iterable[str]) -> dict[str, Tensor]:
    """Network -> its confusion matrix without the right answers, mean of the seeds; empty where nothing was run."""
    found = {}
    for name in names:
        if _rows_of(rows, variant, name):
            mean = confusions(rows, variant, name).mean(0)
            found[name] = mean - mean.diag().diag()
    return found


def name_ticks(fig: "Figure", classes: Sequence[Any]) -> None:
    """Say which row and column of each map is which class: names beside the first map, numbers everywhere.

    Classes that are their numbers have no other name. The colour bar keeps its own ticks.
    """
    numbers = [str(i) for i in range(len(classes))]
    names = [number if str(name) == number else f"{name} {number}" for name, number in zip(classes, numbers)]
    for k, ax in enumerate(ax for ax in fig.axes if ax.get_title()):
        ax.axis("on")
        ax.set_xticks(range(len(numbers)), numbers, fontsize=9)
        ax.set_yticks(range(len(numbers)), numbers if k else names, fontsize=9)
        ax.tick_params(length=0)


def show_wrong(
    rows: Sequence[dict], variant: str, names: Iterable[str], classes: Sequence[Any] = ()
) -> "Figure":
    """Which label is taken for which other: a map for each network, mean of the seeds; `not run` without rows.

    `classes`: their names stand beside the rows of the first map, and their numbers under every column.
    """
    from lesa_nb.look.figures import show_bars, show_maps

    wrong = wrong_answers(rows, variant, names)
    if not wrong:
        return show_bars({"not run": None}, title=f"{variant}: not run", ylabel="pictures per seed")
    fig = show_maps(list(wrong.values()), titles=[f"{name}: {c.sum():.0f} wrong" for name, c in wrong.items()],
                    size=2.2, vmin=0, colorbar=True,
                    title=f"{variant}: truth (rows) against wrong answer (columns), pictures per seed")
    if classes:
        name_ticks(fig, classes)
    return fig
