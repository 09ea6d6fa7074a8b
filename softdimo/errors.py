"""Errors that a person reads: what is wrong, where, what to do. The CLI prints the message and exits with `code`.

Exit codes: 0 done, 1 another error (a process of the run was killed), 2 recipe or plugin, 3 weights, data or run
folder, 4 training cannot go on, 5 a file cannot be written, 70 softdimo or a plugin is broken, 130 stopped by a signal.
"""


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


class WriteError(SoftdimoError):
    """A file cannot be written: the disk is full, or read-only, or the folder is not the user's."""

    code = 5


class CrashError(SoftdimoError):
    """softdimo or a component raised something else (`__cause__`) in the middle of work. Says what is left of it."""

    code = 70


class Interrupted(SoftdimoError):
    """The run was stopped by a signal after it had saved. Says how to resume."""

    code = 130


class Elsewhere(SoftdimoError):
    """Another process of the same run has failed and told the user; this one ends without a word."""
