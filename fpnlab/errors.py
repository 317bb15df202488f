"""Every exception of the package that ends a command, with the exit code of the command."""


class FpnlabError(Exception):
    """An error whose message is for the user; the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(FpnlabError, ValueError):
    """Invalid fields of a config, one a line."""

    exit_code = 2


class ProcessesError(FpnlabError):
    """Processes of one run could not connect to each other."""

    exit_code = 2


class UnavailableError(FpnlabError):
    """A cluster or its client library is not available."""

    exit_code = 2


class DataError(FpnlabError):
    """Data that cannot be read."""

    exit_code = 3


class RunFolderError(FpnlabError):
    """A folder that cannot be used for this run or study."""

    exit_code = 5


class FolderLockedError(RunFolderError):
    """A folder that another process is working in."""


class CheckpointError(FpnlabError):
    """A checkpoint that could not be written, or must not be used."""

    exit_code = 5


class DamagedCheckpointError(FpnlabError):
    """A checkpoint that differs from what was saved."""

    exit_code = 5

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        """Everything that differs, each with the name of its leaf or file."""


class TuningError(FpnlabError, ValueError):
    """Tuning trials of which none has a finite score."""

    exit_code = 5


class WorkersLostError(FpnlabError):
    """All workers have ended before the study has."""

    exit_code = 5


class Interrupted(FpnlabError):
    """The run was asked to stop, and saved before it did (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75
