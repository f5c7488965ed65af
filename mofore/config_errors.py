"""hydra's and OmegaConf's errors in the words of this project, with the key and the remedy."""

import difflib
import re

from mofore.errors import UserError
from mofore.quoting import quote_in_shell
from mofore.settings import key_types


def explain(error: Exception, kind: type) -> str:
    """One sentence for hydra's or omegaconf's error, with the nearest existing key."""
    override = getattr(error, "override", None)  # of hydra's OverrideParseException
    if override is not None:
        return _explain_override(override.lstrip("+"), kind)
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, UserError):  # raised by a dataclass's own check
        return str(cause)
    message = f"{cause}".strip() or str(error)
    if several := re.match("Ambiguous value for argument '(.*)'", message):
        key, _, value = several[1].partition("=")
        return (
            f"configuration: {several[1]}: several values are for `mofore submit --multirun`; a "
            f"list is written {key}=[{value}]."
        )
    key = str(getattr(cause, "full_key", None) or "")
    noise = ("object_type", "full_key", "reference_type")
    lines = [line.strip() for line in message.splitlines()]
    text = " ".join(line for line in lines if not line.startswith(noise))
    text = text.split(" Config search path")[0]
    return f"configuration: {key + ': ' if key and key not in text else ''}{text}{_hint(key, kind)}"


def _explain_override(override: str, kind: type) -> str:
    """What is wrong with an override that hydra cannot parse, and how to write it."""
    key, _, value = override.partition("=")
    if not re.fullmatch(r"[\w.]+", key, re.ASCII):
        fault = f"{key!r} is not a key: write KEY=VALUE, without blanks around the = sign."
    elif key in key_types(kind):
        fault = "the value cannot be read; see `--help` for the type of the key."
    else:
        fault = f"the value cannot be read. As text, quote it: {quote_in_shell(key, value)}."
    return f"configuration: {override}: {fault}{_hint(key, kind)}"


def _hint(key: str, kind: type) -> str:
    """The existing key that is nearest to one that does not exist; or nothing."""
    known = list(key_types(kind))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6) if key else []
    return f" Did you mean {close[0]}?" if close and close[0] != key else ""
