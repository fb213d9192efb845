"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """A refusal in one sentence: the value, the rule, and the flag or argument to change.

    A command prints the sentence as its last line on stderr and exits with status 2; a notebook sees it raised.
    Every other exception is a defect of ours and keeps its traceback.
    """
