"""Reading the Markdown pages of the documentation, for their tests."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *DOCS]
IDS = [path.name for path in PAGES]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """Inline code outside of code blocks; a span may be wrapped."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def table_rows(text: str, header: str) -> list[list[str]]:
    """Cells of every table whose first header cell is `header`, without header and rule."""
    rows: list[list[str]] = []
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    for table in tables:
        cells = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        ]
        if cells[0][0] == header:
            rows += cells[2:]
    return rows
