"""The results of an evaluation as a table on the terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mofore.evaluation.results_table import Cell, build_table


def print_results(results: Path) -> None:
    """Print the table of a results.json, and its path, to stdout."""
    console = Console()
    console.print(rich_table(json.loads(results.read_text())["results"]))
    console.print(f"results: {results}", soft_wrap=True)


def rich_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """One row per metric, one column per encoder, "value [low, high]"; numbered notes below."""
    table = build_table(results)
    printed = Table(
        header_style="bold",
        caption_justify="left",
        caption_style="dim",
        show_edge=False,
        pad_edge=False,
    )
    # At 80 columns labels wrap between words. Cut short, "different-video" and "different-class"
    # would look the same.
    labels = ["metric", *(row.label for rows in table.groups.values() for row in rows)]
    longest_word = max(len(word) for label in labels for word in label.split())
    printed.add_column("metric", width=longest_word)
    for encoder in table.encoders:
        printed.add_column(encoder, justify="right", overflow="fold")
    printed.add_column("n", justify="right")
    printed.add_column("note", justify="right", style="dim")
    for rows in table.groups.values():
        for row in rows:
            cells = [_cell_text(cell) for cell in row.cells]
            printed.add_row(row.label, *cells, row.n, ", ".join(map(str, row.footnotes)))
        printed.add_section()
    footnotes = [f"{number}  {text}" for number, text in enumerate(table.footnotes, start=1)]
    # A Text, because square brackets in a plain caption would be read as markup.
    printed.caption = Text("\n".join(footnotes), no_wrap=False)
    return printed


def _cell_text(cell: Cell) -> Text:
    if cell.value is None:
        return Text("none", style="dim")
    return Text(f"{cell.value} {cell.interval}".rstrip(), style="bold" if cell.best else "")
