"""The tables of the report, as plain values: the terminal, the page and the README show the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from scripts.benchmark.plan import CLIENTS, COMPARED
from scripts.benchmark.results import Measurement, pick
from scripts.benchmark.targets import Findings, Verdict

LIMITS = ("usearch", "hnswlib", "faiss")
"""Libraries in process: limits more than peers."""
BARE_PATHS = "bare paths (limit)"
"""One line for the three: reading, ingesting, building."""
FILTERED_RECALL = 0.99
GROWING = {"start": "start s", "hashing": "of that hashing s", "rss": "RSS MB", "pss": "PSS MB"}
GROWING |= {"private": "private MB", "disk": "bytes/vector"}
"""Costs in the table of growth, with the titles of their columns."""
MET = {True: "yes", False: "NO", None: "-"}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts under a title."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


def tables(findings: Findings) -> Iterator[Table]:
    """All that have something in them; the verdicts are not among them."""
    makers: tuple[Callable[[Findings, str], Table], ...] = (
        _load,
        _query,
        _tried,
        _filtered,
        _writes,
        _costs,
        _memory,
        _missing,
    )
    for name in findings.sets:
        yield from (table for make in makers if (table := make(findings, name)).rows)
    if (grown := _growth(findings)).rows:
        yield grown
    yield from _others(findings)


def summary(findings: Findings, name: str) -> Table:
    """One line for each subject, at the recall that is compared: what the README shows."""
    columns = ("", "recall@10", "queries/s, 1 client (p50 / p99 ms)", "queries/s, 8 clients (p50 / p99 ms)")
    columns += ("1 % filter, queries/s @ recall", "load acknowledged /s", "load indexed /s")
    rows = [_summary_of(findings, name, subject) for subject in _subjects(findings, name)]
    title = f"{name}, {findings.rows:,} vectors, recall@10 of at least {COMPARED[name]}"
    return Table(title, columns, [row for row in rows if {*row[1:]} != {"-"}])


def _summary_of(findings: Findings, name: str, subject: str) -> tuple[str, ...]:
    """What has no acknowledgement of its own is counted when it is searchable."""
    if subject == BARE_PATHS:
        queries = [findings.bare(name, clients) for clients in CLIENTS]
        ingest = findings.pick(name, "load.acknowledged", "limit: bare ingest", clients=1)
        acknowledged = max(ingest, key=lambda one: one.value, default=None)
        indexed = findings.first(name, "load.indexed", "limit: usearch build")
    else:
        queries = [_query_of(findings, subject, name, clients) for clients in CLIENTS]
        acknowledged = findings.first(name, "load.acknowledged", subject, clients=1)
        acknowledged = acknowledged or findings.first(name, "load.searchable", subject)
        indexed = findings.first(name, "load.indexed", subject)
    recall = next((f"{one.recall:.3f}" for one in queries if one and one.recall), "-")
    filtered = _best_filtered(findings, name, subject, "random 1 %")
    asked = f"{_rate(filtered)} @ {filtered.recall:.2f}" if filtered and filtered.recall else "-"
    return subject, recall, *map(_timed, queries), asked, _rate(acknowledged), _rate(indexed)


def _best_filtered(findings: Findings, name: str, subject: str, filter: str) -> Measurement | None:
    """The fastest that finds enough, or what finds most."""
    found = [
        one
        for what in ("filtered", "filtered.raised")
        for one in findings.pick(name, what, subject, filter=filter, clients=1)
    ]
    enough = [one for one in found if (one.recall or 0) >= FILTERED_RECALL]
    fastest = max(enough, key=lambda one: one.value, default=None)
    return fastest or max(found, key=lambda one: one.recall or 0, default=None)


def _timed(one: Measurement | None) -> str:
    return f"{_rate(one)} ({_ms(one.p50_ms)} / {_ms(one.p99_ms)})" if one else "-"


def verdict_table(verdicts: Iterable[Verdict]) -> Table:
    """The targets."""
    rows = [(one.target, one.case, one.asked, one.found, MET[one.met]) for one in verdicts]
    return Table("Targets", ("target", "case", "asked", "found", "met"), rows)


def target_table(found: Iterable[Verdict]) -> Table:
    """The targets in short: of all cases in which the same was asked, how many are met, and the worst."""
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for one in found:
        if one.met is not None:
            groups.setdefault((one.target, one.asked), []).append(one)
    rows = []
    for (target, asked), group in groups.items():
        worst = min(group, key=lambda one: one.margin)
        met = sum(one.met is True for one in group)
        rows.append((target, asked, f"{worst.found}: {worst.case}", f"{met} of {len(group)}"))
    return Table("Targets", ("target", "asked", "found at the worst", "met"), rows)


def _subjects(findings: Findings, name: str) -> list[str]:
    found = dict.fromkeys(one.subject for one in findings.all if one.set == name and one.rows == findings.rows)
    peers = [one for one in found if not one.startswith("limit: ") and one != "headrace"]
    engines = [one for one in peers if one not in LIMITS]
    return ["headrace", BARE_PATHS, *engines, *(one for one in peers if one in LIMITS)]


def _query_of(findings: Findings, subject: str, name: str, clients: int) -> Measurement | None:
    if subject == "headrace":
        return findings.ours(name, clients)
    return findings.peer(subject, name, clients, ("query", "query.raw"))


def _load(findings: Findings, name: str) -> Table:
    rows = [
        (what, one.subject, _text(one.clients), _spread(one), one.unit, _settings(one), one.note)
        for what in ("load.acknowledged", "load.searchable", "load.indexed", "load.merged", "load.large")
        for one in findings.pick(name, what, None)
    ]
    columns = ("load", "subject", "connections", "median (least to greatest)", "", "settings", "note")
    note = "from the first request"
    return Table(f"{name}: load", columns, rows, note)


def _query(findings: Findings, name: str) -> Table:
    rows = []
    for what in ("query", "query.default", "query.half", "query.default.half", "query.raw"):
        for one in findings.pick(name, what, None):
            recall = f"{one.recall:.4f}" if one.recall else "-"
            times = (_ms(one.p50_ms), _ms(one.p99_ms))
            rows.append((what, one.subject, _text(one.clients), recall, _spread(one), *times, _settings(one), one.note))
    columns = (
        "query",
        "subject",
        "clients",
        "recall@10",
        "/s (least to greatest)",
        "p50 ms",
        "p99 ms",
        "settings",
        "note",
    )
    return Table(f"{name}: queries", columns, sorted(rows, key=lambda row: row[0] != "query"), "")


def _tried(findings: Findings, name: str) -> Table:
    found = findings.pick(name, "query.curve")
    rows = [(_settings(one), f"{one.recall:.4f}", f"{one.value:,.0f}") for one in found]
    return Table(f"{name}: settings of recall", ("asked", "recall@10", "/s with 8 clients"), rows)


def _filtered(findings: Findings, name: str) -> Table:
    rows = []
    for what in ("filtered.none", "filtered", "filtered.raised"):
        for one in findings.pick(name, what, None):
            recall = f"{one.recall:.4f}" if one.recall is not None else "-"
            ratio = _text(one.settings.get("to unfiltered"))
            effort = _text(one.settings.get("effort"))
            times = (_ms(one.p50_ms), _ms(one.p99_ms))
            shown = (one.filter or "none", one.subject, _text(one.clients), recall, _spread(one), ratio, *times)
            rows.append((*shown, effort, one.note))
    columns = (
        "filter",
        "subject",
        "clients",
        "recall@10",
        "/s (least to greatest)",
        "to unfiltered",
        "p50 ms",
        "p99 ms",
    )
    order = {"none": 0}
    rows.sort(key=lambda row: (row[1] != "headrace", row[1], order.get(row[0], 1)))
    return Table(f"{name}: filtered queries", (*columns, "effort", "note"), rows)


def _writes(findings: Findings, name: str) -> Table:
    rows = []
    for what in ("visible", "reads during load"):
        for one in findings.pick(name, what, None):
            settings = {key: value for key, value in one.settings.items() if one.subject == "headrace"}
            rows.append((what, one.subject, _ms(one.p50_ms), _ms(one.p99_ms), _pairs(settings), one.note))
    return Table(f"{name}: writes", ("", "subject", "p50 ms", "p99 ms", "settings", "note"), rows)


def _costs(findings: Findings, name: str) -> Table:
    rows = []
    for what in ("list", "get", "start.ready", "start", "rss", "disk"):
        for one in findings.pick(name, what, None):
            times = (_ms(one.p50_ms), _ms(one.p99_ms))
            rows.append((what, one.subject, _text(one.clients), _spread(one), one.unit, *times, one.note))
    columns = ("", "subject", "clients", "median (least to greatest)", "", "p50 ms", "p99 ms", "note")
    return Table(f"{name}: listing, getting, starting, memory, disk", columns, rows)


def _memory(findings: Findings, name: str) -> Table:
    found: dict[tuple[str, str], list[str]] = {}
    for kind in ("rss", "pss", "private"):
        for one in findings.pick(name, f"memory.{kind}"):
            place = (_text(one.settings["processes"]), _text(one.settings["process"]))
            found.setdefault(place, []).append(f"{one.value:.0f}")
    rows = [(*place, *values) for place, values in found.items()]
    columns = ("service processes", "process", "RSS MB", "PSS MB", "private MB")
    note = "each; pages that are shared count whole in RSS, by share in PSS, not at all in private"
    return Table(f"{name}: memory of our processes", columns, rows, note)


def _missing(findings: Findings, name: str) -> Table:
    found = [one for what in ("missing", "failed") for one in findings.pick(name, what, None)]
    rows = [(one.subject, one.what, one.note) for one in found]
    return Table(f"{name}: what could not be measured", ("subject", "", "why"), rows)


def _growth(findings: Findings) -> Table:
    """A line for each size."""
    found = [one for one in findings.all if one.what.startswith("growth.")]
    rows = []
    for count in sorted({one.rows for one in found}):
        here = [one for one in found if one.rows == count]
        one, eight = (_first(here, what="growth.query", subject="headrace", clients=each) for each in CLIENTS)
        limit = next((each for each in pick(here, what="growth.query") if each.subject != "headrace"), None)
        costs = {each.what: each for each in here if each.settings.get("process", "service") == "service"}
        rows.append(
            (
                f"{count:,}",
                f"{one.recall:.3f}" if one and one.recall else "-",
                *(_ms(value) for each in (one, eight) for value in (each and each.p50_ms, each and each.p99_ms)),
                _ms(limit and limit.value),
                *(_number(costs[f"growth.{name}"].value) if f"growth.{name}" in costs else "-" for name in GROWING),
            )
        )
    queries = ("recall@10", "p50 ms, 1 client", "p99", "p50 ms, 8 clients", "p99", "graph alone ms")
    columns = ("vectors", *queries, *GROWING.values())
    return Table(
        "glove: growth", columns, rows, f"merged; queries at recall {COMPARED['glove']}; memory of a service process"
    )


def _first(found: Iterable[Measurement], **wanted: object) -> Measurement | None:
    return next(iter(pick(found, **wanted)), None)


def _others(findings: Findings) -> Iterator[Table]:
    """Many small indexes, and sets of other sizes."""
    known = {(name, findings.rows) for name in COMPARED}
    others = [one for one in findings.all if not one.what.startswith("growth.")]
    places = dict.fromkeys((one.set, one.rows) for one in others if (one.set, one.rows) not in known)
    for name, count in places:
        rows = []
        for one in (each for each in others if (each.set, each.rows) == (name, count)):
            recall = f"{one.recall:.4f}" if one.recall else "-"
            times = (_ms(one.p50_ms), _ms(one.p99_ms), recall)
            rows.append((one.what, one.subject, _text(one.clients), _spread(one), one.unit, *times, _settings(one)))
        columns = ("", "subject", "clients", "value", "", "p50 ms", "p99 ms", "recall@10", "settings")
        yield Table(f"{name}, {count:,} vectors", columns, rows)


def _settings(one: Measurement) -> str:
    return _pairs(one.settings)


def _pairs(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _spread(one: Measurement) -> str:
    if one.low is None or one.high is None:
        return _number(one.value)
    return f"{_number(one.value)} ({_number(one.low)} to {_number(one.high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"


def _rate(one: Measurement | None) -> str:
    return f"{one.value:,.0f}" if one else "-"


_whole = _rate


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _text(value: object) -> str:
    return "-" if value is None else str(value)
