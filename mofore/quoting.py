"""Texts in KEY=VALUE overrides, quoted so that hydra and OmegaConf read them back unchanged.

Without quotes hydra reads 1e3, 007 and 1_000 as numbers, and refuses a=b, (, # and letters that
are not ASCII. So a key of the type str takes what was typed, and is quoted here.
"""

import re
import shlex

from mofore.errors import UserError
from mofore.settings import key_types

_QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
QUOTED = re.compile(_QUOTED, re.DOTALL)
OPTION = re.compile(rf"({_QUOTED}|[^,]*)(,|\Z)", re.DOTALL)  # of a sweep, and its comma
NEEDS_NO_QUOTES = re.compile(r"[\w./:@+=-]+")  # as an option of a sweep


def to_override(key: str, value: object) -> str:
    """KEY=VALUE that hydra reads back as exactly this value, whatever characters it has."""
    return f"{key}={_to_text(value)}"


def _to_text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, list):
        return f"[{','.join(map(_to_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_to_text(item)}' for key, item in value.items())}}}"
    return quote(escape_interpolations(str(value)), "'")


def escape_interpolations(text: str) -> str:
    r"""Text with each ${ as \${, so that OmegaConf takes it literally."""
    # the backslashes before ${ count double
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def quote(text: str, mark: str) -> str:
    """Text between quotation marks, as hydra reads it; mark: ' or "."""
    # the backslashes before a mark or at the end count double
    text = re.sub(rf"(\\*){mark}", rf"\1\1\\{mark}", text)
    return mark + re.sub(r"(\\+)\Z", r"\1\1", text) + mark


def quote_in_shell(key: str, text: str) -> str:
    """KEY="TEXT" as it is typed in a shell, in single quotes."""
    return shlex.quote(f"{key}={quote(text, chr(34))}")


def text_keys(kind: type) -> dict[str, bool]:
    """The keys of a configuration dataclass whose type is str: {key: whether null is None}."""
    types = key_types(kind).items()
    return {key: each is not str for key, each in types if each in (str, str | None)}


def quote_text(override: str, texts: dict[str, bool]) -> str:
    """The override, its value in hydra's quotes if its key is one of `texts`.

    A value that is in quotes already stays as it is, and `null` stays where it is None.
    Raises UserError for `${`, which may be meant as text or as the value of another key.
    """
    key, _, value = override.partition("=")
    if key not in texts or QUOTED.fullmatch(value):
        return override
    if texts[key] and value.lower() == "null":
        return override
    if "${" in value:
        raise UserError(
            f"{override}: ${{...}} has two meanings. As text, write "
            f"{quote_in_shell(key, escape_interpolations(value))}; for the value of another key, "
            f"write {quote_in_shell(key, value)}."
        )
    return to_override(key, value)


def split_options(override: str) -> list[str]:
    """The values of a text key in a sweep: KEY=a,b -> ["KEY=a", "KEY=b"]; quotes keep a comma.

    Raises UserError for an empty value, and if brackets leave it open what a comma separates.
    """
    key, _, value = override.partition("=")
    options, position, comma = [], 0, ","
    while comma:
        match = OPTION.match(value, position)
        assert match is not None
        option, comma = match.groups()
        options.append(option)
        position = match.end()
    if len(options) == 1:
        return [override]
    options = [option.strip() for option in options]
    unquoted = [option for option in options if not QUOTED.fullmatch(option)]
    if any(not option or re.search(r"[()\[\]{}]", option) for option in unquoted):
        raise UserError(
            f"{override}: it is not clear which commas separate the values of the sweep. Put "
            f"quotes around a value with a comma: {quote_in_shell(key, value)} is one value."
        )
    return [f"{key}={option}" for option in options]


def to_option(text: str) -> str:
    """A text as one value of a sweep, in quotes if `split_options` would misread it."""
    if NEEDS_NO_QUOTES.fullmatch(text):
        return text
    return quote(escape_interpolations(text), "'")
