"""Curves of a run: loss and scores against its epochs, drawn once or again after each epoch."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from lesa_nb.look.figures import COLORS, new_figure

__all__ = ["curves", "live"]


def curves(events: Iterable[dict[str, Any]], title: str | None = None) -> Figure:
    """Loss and scores of a run against its epochs.

    Args:
        events: What happened: `read_log` of the run's folder, or what `fit` yielded.
        title: The finding.

    Raises:
        ValueError: There is no step among the events.
    """
    events = list(events)
    steps, valid = ([e for e in events if e["kind"] == kind] for kind in ("step", "valid"))
    if not steps:
        raise ValueError("no steps in the log of this run yet: nothing to draw")
    per_epoch = next(e["steps"] for e in events if e["kind"] == "start")
    fig, (left, right) = new_figure(1, 2, size=(7.6, 2.8), title=title)
    places = [e["epoch"] + e["step"]/per_epoch for e in steps]
    left.plot(places, [e["loss"] for e in steps], color=COLORS["lesa"], lw=1.2)
    left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    names = [name for name in (valid[0]["scores"] if valid else ()) if "loss" not in name]
    for name, style in zip(names, ("-", "--", "-.", ":")*9):
        scores = [e["scores"].get(name) for e in valid]
        right.plot([e["epoch"] + 1 for e in valid], scores, style, color=COLORS["gate"], marker="o", ms=3, label=name)
    right.set(xlabel="epochs", ylabel="scores on validation images")
    right.locator_params(axis="x", integer=True)
    if valid:
        right.legend(frameon=False, fontsize=8)
    return fig


def live(events: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """In a notebook: passes the events of `fit` on, and draws the curves so far anew after each epoch."""
    from IPython.display import display

    handle, seen = None, []
    for event in events:
        yield event
        seen.append(event)
        if event["kind"] != "valid":
            continue
        scores = ", ".join(f"{name} {value:.1f}" for name, value in event["scores"].items())
        fig = curves(seen, f"epoch {event['epoch'] + 1}: {scores}")
        if handle:
            handle.update(fig)
        else:
            handle = display(fig, display_id=True)
        plt.close(fig)
