"""The one exception for what a user can mend: the command line prints it without a traceback."""


class UserError(ValueError):
    """A mistake in what the user gave. The message names the thing (file, key) and the remedy."""
