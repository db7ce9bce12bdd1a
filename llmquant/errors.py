"""The exceptions llmquant raises on purpose. Each message says what was got, what was wanted and what to do."""

# Names and texts of other people go into messages, and a hostile checkpoint may hold a name of megabytes.
MAX_MESSAGE = 8000


class LlmquantError(Exception):
    """Base of everything raised on purpose; the command line prints it without a traceback."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_bounded(str(message)))


class RecipeError(LlmquantError, ValueError):
    """A recipe file is malformed: names the file, the line, the key and the nearest right word."""


class PatternError(LlmquantError, ValueError):
    """A regular expression, of a recipe or of a checkpoint's config, is malformed or takes too long to match."""


class PlanError(LlmquantError, ValueError):
    """A recipe does not fit a model: names the rule, the module and the fix."""


class CheckpointError(LlmquantError, ValueError):
    """A checkpoint is missing, truncated, corrupt, unsafe (pickle) or inconsistent."""


class DataError(LlmquantError, ValueError):
    """A text, data set or tokenizer is missing or too short for what was asked."""


class QuantizationError(LlmquantError, ValueError):
    """A weight or a statistic cannot be quantized, such as one that holds NaN or Inf."""


class OutputError(LlmquantError, OSError):
    """The result cannot be written: no space, a folder that is not ours, a run that was never finished."""


class DeviceError(LlmquantError, ValueError):
    """A device that this machine or torch does not have."""


class OutOfMemoryError(LlmquantError, MemoryError):
    """The system did not give the memory that was asked for."""


def _bounded(message: str) -> str:
    if len(message) <= MAX_MESSAGE:
        return message
    kept = MAX_MESSAGE - 50  # so that a message that was cut is not cut again when it is unpickled
    return f"{message[:kept]} ... and {len(message) - kept} more characters"
