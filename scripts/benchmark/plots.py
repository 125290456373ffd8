"""Draws the report's plots as SVG, in an environment of its own that has matplotlib.

python -m scripts.benchmark.plots RESULTS.json FOLDER ROWS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt

Measured = dict[str, Any]
SETS = ("glove", "syn768")
LEVELS = {"glove": 0.95, "syn768": 0.98}


def main() -> None:
    """Every plot that there are figures for."""
    results, folder, rows = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    found = [one for part in json.loads(results.read_text())["parts"] for one in part["measurements"]]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    plt.rcParams |= {"svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
    for number, name in enumerate(SETS):
        measured = [one for one in found if one["set"] == name and one["rows"] == rows]
        _recalls(measured, f"{name}: queries a second with 8 clients", folder / f"{number}-1-recall.svg")
        _filters(measured, f"{name}: filtered queries", folder / f"{number}-2-filtered.svg")
        _latencies(measured, name, folder / f"{number}-3-latency.svg")
    _growth(found, folder / "9-growth.svg")


def _recalls(found: list[Measured], title: str, path: Path) -> None:
    points: dict[str, list[tuple[float, float]]] = {}
    for one in found:
        if one["what"] in ("query", "query.raw", "query.curve") and one.get("clients") == 8 and one.get("recall"):
            name = one["subject"] + (" (raw)" if one["what"] == "query.raw" else "")
            points.setdefault(name, []).append((one["recall"], one["value"]))
    if not points:
        return
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, pairs in points.items():
        _line(axes, name, sorted(pairs))
    axes.set(title=title, xlabel="recall@10", ylabel="queries/s", yscale="log")
    _save(figure, axes, path)


def _filters(found: list[Measured], title: str, path: Path) -> None:
    points: dict[str, list[tuple[float, float]]] = {}
    for one in found:
        if one["what"] == "filtered" and one.get("clients") == 1:
            points.setdefault(one["subject"], []).append((max(one.get("recall", 0), 0.001), one["value"]))
    if not points:
        return
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, pairs in points.items():
        axes.scatter(*zip(*pairs, strict=True), label=name, marker="*" if name == "headrace" else "o", s=30)
    axes.axvline(0.99, color="grey", linewidth=0.8, linestyle="--")
    axes.set(title=f"{title}: 12 filters, 1 client", xlabel="recall@10", ylabel="queries/s", yscale="log")
    _save(figure, axes, path)


def _latencies(found: list[Measured], name: str, path: Path) -> None:
    bars = {}
    for one in found:
        reaches = one.get("recall", 0) >= LEVELS[name] - 0.0005
        level = one["settings"].get("level", LEVELS[name]) if "settings" in one else LEVELS[name]
        if one["what"] in ("query", "query.raw") and one.get("clients") == 8 and reaches and level == LEVELS[name]:
            label = one["subject"] + (" (raw)" if one["what"] == "query.raw" else "")
            bars.setdefault(label, (one["p50_ms"], one["p99_ms"]))
    if not bars:
        return
    figure, axes = plt.subplots(figsize=(7, 0.35 * len(bars) + 1.5))
    places = range(len(bars))
    axes.barh([place - 0.2 for place in places], [each[0] for each in bars.values()], 0.4, label="p50")
    axes.barh([place + 0.2 for place in places], [each[1] for each in bars.values()], 0.4, label="p99")
    axes.set_yticks(list(places), list(bars))
    axes.invert_yaxis()
    axes.set(title=f"{name}: latency with 8 clients, recall@10 of at least {LEVELS[name]}", xlabel="ms", xscale="log")
    _save(figure, axes, path)


def _growth(found: list[Measured], path: Path) -> None:
    """Every figure of the growth part by the number of vectors, relative to the smallest."""
    chosen = {"growth.start": "start to the first answer", "growth.pss": "memory of a service process (PSS)"}
    chosen |= {"growth.disk": "bytes on disk for each vector"}
    points: dict[str, dict[int, float]] = {}
    for one in found:
        ours = one["subject"] == "headrace"
        settings = one.get("settings", {})
        if one["what"] == "growth.query":
            name = f"query p50, {one['clients']} clients" if ours else "graph alone, p50"
            points.setdefault(name, {})[one["rows"]] = one["p50_ms"] if ours else one["value"]
        elif one["what"] in chosen and settings.get("process", "service") == "service":
            points.setdefault(chosen[one["what"]], {})[one["rows"]] = one["value"]
    if not points:
        return
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, values in points.items():
        pairs = sorted(values.items())
        axes.plot([rows for rows, _ in pairs], [value / pairs[0][1] for _, value in pairs], label=name, marker="o")
    axes.set(title="growth, relative to the fewest vectors", xlabel="vectors", xscale="log", yscale="log")
    _save(figure, axes, path)


def _line(axes: Any, name: str, pairs: list[tuple[float, float]]) -> None:
    ours = name == "headrace"
    style = (
        {"linewidth": 2.2, "marker": "*", "markersize": 9} if ours else {"linewidth": 1, "marker": "o", "markersize": 4}
    )
    axes.plot(*zip(*pairs, strict=True), label=name, linestyle="--" if name.startswith("limit") else "-", **style)


def _save(figure: Any, axes: Any, path: Path) -> None:
    axes.legend(fontsize=7, loc="best")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
