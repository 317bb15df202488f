"""Exceptions of the package, with the exit code of the command that they end."""


class FpnlabError(Exception):
    """Base class of errors whose message the command line prints without a traceback."""

    exit_code = 1


class ConfigError(FpnlabError, ValueError):
    """Invalid fields of a config, one per line of the message."""

    exit_code = 2


class ProcessesError(FpnlabError):
    """The processes of a run could not connect to each other."""

    exit_code = 2


class PeerLostError(FpnlabError):
    """Another process of the same run ended before its end."""

    exit_code = 5


class UnavailableError(FpnlabError):
    """A cluster or its client library is not available."""

    exit_code = 2


class DataError(FpnlabError):
    """Data that cannot be read."""

    exit_code = 3


class WeightsError(FpnlabError, ValueError):
    """A file of weights that cannot be read, or weights that do not fit the model."""

    exit_code = 3


class RunFolderError(FpnlabError):
    """A folder that cannot be used for this run or study."""

    exit_code = 5


class FolderLockedError(RunFolderError):
    """A folder that another process has locked."""


class CheckpointError(FpnlabError):
    """A checkpoint that could not be written, or that must not be restored."""

    exit_code = 5


class DamagedCheckpointError(FpnlabError):
    """A checkpoint whose content differs from its checksums."""

    exit_code = 5

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        """All differences, each with the name of its leaf or file."""


class TuningError(FpnlabError, ValueError):
    """Tuning trials without any finite score."""

    exit_code = 5


class WorkersLostError(FpnlabError):
    """All workers of a study ended before its last trial."""

    exit_code = 5


class Interrupted(FpnlabError):
    """A run or study that stopped on request, after saving (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75
