"""Errors that the command line turns into one message, and the exit codes of every command."""

EXIT_USER_ERROR = 2  # something the user can fix; nothing is worth retrying
EXIT_RESUMABLE = 75  # EX_TEMPFAIL: preempted, or a peer rank was lost; rerun the same command
EXIT_INTERRUPTED = 130  # stopped at once by Ctrl-C


class UserError(ValueError):
    """A mistake in the input. The message names the file or key and the remedy."""
