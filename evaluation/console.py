"""Results (a dict a number, as in results.json) in, the table that `mofore evaluate` prints out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation import table as report_table
from evaluation.table import Cell


def show(results: Path) -> None:
    """Print the table of a results.json, and where it lies."""
    console = Console()
    console.print(table(json.loads(results.read_text())["results"]))
    console.print(f"results: {results}", soft_wrap=True)


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Rows metrics, columns encoders, "value [low, high]"; under it the protocols and notes, by number."""
    laid = report_table.table(results)
    printed = Table(
        header_style="bold", caption_justify="left", caption_style="dim", show_edge=False, pad_edge=False
    )
    # At 80 columns names break between words: of "different-video" and "different-class", cut short, nobody knows which
    # is which.
    names = ["metric", *(row.label for rows in laid.groups.values() for row in rows)]
    longest = max(len(word) for name in names for word in name.split())
    printed.add_column("metric", width=longest)
    for encoder in laid.encoders:
        printed.add_column(encoder, justify="right", overflow="fold")
    printed.add_column("n", justify="right")
    printed.add_column("note", justify="right", style="dim")
    for rows in laid.groups.values():
        for row in rows:
            cells = [_text(cell) for cell in row.cells]
            printed.add_row(row.label, *cells, row.n, ", ".join(map(str, row.footnotes)))
        printed.add_section()
    # Square brackets in a caption would be read as markup.
    printed.caption = Text(
        "\n".join(f"{number}  {text}" for number, text in enumerate(laid.footnotes, start=1)), no_wrap=False
    )
    return printed


def _text(cell: Cell) -> Text:
    if cell.value is None:
        return Text("none", style="dim")
    return Text(f"{cell.value} {cell.interval}".rstrip(), style="bold" if cell.best else "")
