"""HTML pages in one style: the report of a run, and what `mofore data` shows.

A page is one file and loads nothing: its content security policy allows only data URIs.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render_page(template: Path, variables: dict[str, Any]) -> str:
    """The text of a page. `template` extends page.html.jinja, which has the style."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**variables)
