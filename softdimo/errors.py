"""Errors that a person reads: what is wrong, where, what to do. The CLI prints the message and exits with `code`."""


class SoftdimoError(Exception):
    """Base of every error that the user can mend. `code` is the exit code of the command line."""

    code = 1


class RecipeError(SoftdimoError):
    """A recipe (or an override) is wrong. The message holds one `file:line:col path: what` line per fault."""

    code = 2


class PluginError(SoftdimoError):
    """A component is unknown, ambiguous, broken, or its extra is not installed."""

    code = 2


class WeightsError(SoftdimoError):
    """Weights are missing, truncated, or belong to another model. Names the keys."""

    code = 3


class DataError(SoftdimoError):
    """A data set is missing, changed, or cannot be read."""

    code = 3


class CheckpointError(SoftdimoError):
    """A checkpoint or a run folder is incomplete, damaged, or belongs to another recipe."""

    code = 3


class TrainingError(SoftdimoError):
    """Training cannot go on (a loss is not finite). Names the term, the iteration and the last good checkpoint."""

    code = 4


class Interrupted(SoftdimoError):
    """The run was stopped by a signal after it had saved. Says how to resume."""

    code = 130
