"""YAML files of a configuration, in which a text stays the text that was written.

PyYAML and OmegaConf differ in what they read as a number: 1e3 is a text to one of them.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from mofore.errors import UserError
from mofore.quoting import escape_interpolations


class _Dumper(yaml.SafeDumper):
    """Puts quotes around a text like 1e3, which OmegaConf would read as a number."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+\Z"),
    list("-+.0123456789"),
)


def dump(values: dict[str, Any]) -> str:
    """Plain values as YAML that PyYAML and OmegaConf read alike."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def load_literally(path: Path) -> dict[str, Any]:
    """The values that `dump` wrote, for OmegaConf: a text with ${ is not an interpolation."""
    return _escape(yaml.safe_load(path.read_text(encoding="utf-8")) or {})


def _escape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    return escape_interpolations(value) if isinstance(value, str) else value


def check_texts(path: Path, group: str, texts: dict[str, bool]) -> None:
    """Check that OmegaConf reads the text keys of a user's file as they are written.

    path: configs/GROUP/NAME.yaml; without the line "# @package _global_" its keys are below
    `group`. texts: the text keys. Raises UserError for `run_dir: 1e3` or `time: 24:00:00`, which
    YAML reads as numbers.
    """
    text = path.read_text(encoding="utf-8")
    prefix = "" if re.search(r"^# @package _global_", text, re.MULTILINE) else f"{group}."
    try:
        written = yaml.load(text, Loader=yaml.BaseLoader)
        read = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    for key in texts:
        if not key.startswith(prefix):
            continue
        parts = key.removeprefix(prefix).split(".")
        value, scalar = _find(read, parts), _find(written, parts)
        if isinstance(value, bool | int | float) and str(value) != scalar:
            raise UserError(
                f"{path}: {key}: {scalar} is a {type(value).__name__} to YAML ({value}): put it in "
                f'quotes, "{scalar}".'
            )


def _find(values: Any, parts: list[str]) -> Any:
    """The value at a path of keys; None if there is none."""
    for part in parts:
        values = values.get(part) if isinstance(values, dict) else None
    return values
