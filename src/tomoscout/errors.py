"""The errors a user is meant to read."""


class TomoscoutError(Exception):
    """Something the user can mend. The message is one line that names the file, run or key at fault,
    what was found there, and what was expected."""


class TrainingFailed(TomoscoutError):
    """A training that cannot succeed with its options on such a machine, however often it is tried.

    `validations`: its scores until then."""

    validations: list[float]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.validations = []
