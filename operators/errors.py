"""The one error that a person using the toolkit is meant to read."""


class InputError(ValueError):
    """What a person gave cannot be used.

    The message is a sentence that says what arrived, what was expected and what to do.
    The command lines print it alone, without a traceback, and exit with status 2.
    """
