"""Shows what was measured: tables on the terminal, a page with plots, and the README's table as Markdown."""

from __future__ import annotations

import html
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from scripts.benchmark import targets
from scripts.benchmark.environments import NotInstalled, environment
from scripts.benchmark.journal import ROOT, Journal
from scripts.benchmark.tables import Table, summary, tables, target_table, verdict_table
from scripts.benchmark.targets import Findings

MATPLOTLIB = "matplotlib==3.11.2"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 2rem; font-size: 13px }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }
th { background: #f4f4f4 }
td { font-variant-numeric: tabular-nums }
figure { margin: 1rem 0; display: inline-block }
svg { max-width: 100% }
.NO { background: #fdd }
.yes { background: #dfd }
"""
FAIRNESS = """Medians of rounds, with the least and the greatest. Only ratios of figures of one machine are results.
BENCHMARKS.md says what each figure means, and what is unlike between the subjects."""


def write(journal: Journal, out: Path, *, rows: int, plots: bool) -> None:
    """Print every table, the targets last, and write the page beside the journal."""
    findings = Findings(journal.measurements, rows)
    found = [*tables(findings), *_summaries(findings), _parts(journal)]
    last = verdict_table(targets.verdicts(findings))
    console = Console(width=200) if not Console().is_terminal else Console()
    for table in [*found, last]:
        console.print(_rich(table))
    console.print(_machine(journal), highlight=False)
    if journal.parts:
        drawn = _plots(journal.path, out, rows) if plots else []
        page = out / "report.html"
        page.write_text("".join(_page(journal, [last, *found], drawn)), encoding="utf-8")
        console.print(f"{journal.path}\n{page}", highlight=False)


def markdown(journal: Journal, *, rows: int) -> str:
    """The tables for the README: a line for each subject, the targets, and the machine."""
    findings = Findings(journal.measurements, rows)
    shown = [*_summaries(findings), target_table(targets.verdicts(findings))]
    return "\n\n".join([*map(_markdown, shown), f"{_machine(journal)}. Peers: {_versions(findings)}."])


def _versions(findings: Findings) -> str:
    """Of everything measured in its own environment."""
    settings = [one.settings for one in findings.all if "version" in one.settings]
    found = dict.fromkeys(str(each.get("versions", each["version"])) for each in settings)
    return ", ".join(found) or "none"


def _summaries(findings: Findings) -> list[Table]:
    return [table for name in findings.sets if (table := summary(findings, name)).rows]


def _markdown(table: Table) -> str:
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return f"{table.title}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=table.title, caption=table.note, title_justify="left", caption_justify="left")
    for column in table.columns:
        shown.add_column(column, overflow="fold")
    for row in table.rows:
        shown.add_row(*row, style="bold red" if row[-1] == "NO" else None)
    return shown


def _machine(journal: Journal) -> str:
    return ", ".join(f"{name} {value}" for name, value in journal.machine.items())


def _parts(journal: Journal) -> Table:
    """When each part was measured, of which source, and how busy the machine was with other things."""
    columns = ("part", "set", "date", "source", "load average before", "seconds")
    names = ("part", "set", "date", "source", "load average", "seconds")
    rows = [tuple(str(part.get(name, "-")) for name in names) for part in journal.parts]
    return Table("Parts of this report", columns, rows, "a plus after the source: files of it were changed")


def _plots(results: Path, out: Path, rows: int) -> list[str]:
    """SVG drawings, made in an environment that has matplotlib; none where it cannot be installed."""
    try:
        python = environment("report", (MATPLOTLIB,))
    except NotInstalled as error:
        print(f"no plots: {error}", flush=True)
        return []
    folder = out / "plots"
    command = [str(python), "-P", "-m", "scripts.benchmark.plots", str(results), str(folder), str(rows)]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"no plots: {done.stderr[-2000:]}", flush=True)
        return []
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.svg"))]


def _page(journal: Journal, shown: Iterable[Table], drawn: Iterable[str]) -> Iterator[str]:
    yield f"<!doctype html><meta charset=utf-8><title>Headrace: speed</title><style>{STYLE}</style><h1>Speed</h1>"
    yield f"<p>{html.escape(_machine(journal))}</p>"
    yield f"<p>{FAIRNESS}</p>"
    first, *others = shown
    yield _table(first)
    for svg in drawn:
        # What comes before the element is for files of their own.
        yield f"<figure>{svg[svg.index('<svg') :]}</figure>"
    yield from map(_table, others)


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(column)}" for column in table.columns)
    rows = "".join(f"<tr>{_cells(row)}" for row in table.rows)
    note = f"<p>{html.escape(table.note)}</p>" if table.note else ""
    return f"<h2>{html.escape(table.title)}</h2>{note}<table><tr>{head}{rows}</table>"


def _cells(row: tuple[str, ...]) -> str:
    return "".join(
        f'<td class="{cell}">{cell}' if cell in ("NO", "yes") else f"<td>{html.escape(cell)}" for cell in row
    )
