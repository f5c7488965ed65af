"""The limit of open files, checked before something needs more than it allows."""

import os
import resource

from mofore.errors import UserError

RAISED = 4096  # as many systems allow


def check_open_files(more: int, purpose: str) -> None:
    """Allow this process and those that it starts `more` open files than it has.

    The soft limit is raised if it is too low. Raises UserError if the hard limit forbids that.
    purpose: what needs the files, for the message.
    """
    needed = _open_files() + more
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    wanted = max(RAISED, 2 * needed)
    if hard == resource.RLIM_INFINITY or hard >= needed:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        return
    raise UserError(too_few_files(hard, f"{purpose} needs about {needed}", wanted))


def too_few_files(limit: int, need: str, wanted: int = RAISED) -> str:
    """The message about a limit of open files that is too low."""
    return (
        f"This process may have {limit} open files, but {need}. Raise the limit with "
        f"`ulimit -n {wanted}`, in a container with `docker run --ulimit nofile={wanted}`, or "
        "lower workers."
    )


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # not Linux
        return 0
