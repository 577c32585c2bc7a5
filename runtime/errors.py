"""Every error flatlm raises on purpose, in one tree.

    FlatlmError
    ├── UsageError             a flag or argument that cannot be meant
    ├── SourceError            the model to be exported cannot be read
    │   └── UnsupportedError   an architecture, dtype or feature flatlm does not know
    ├── ArtifactError          an exported model that cannot be used
    │   ├── FormatError        unknown version or function, shapes that do not fit
    │   └── IntegrityError     missing, truncated or changed file; path that leaves the folder
    ├── TokenizerError         tokenizer.json or its config is damaged
    ├── TemplateError          the chat template fails or tries to leave its sandbox
    ├── ContextError           more tokens than the context holds
    ├── BackendError           a backend, device or optional package that is not there
    └── ResourceError          not enough memory or disk

A message says what happened, where, and what to do about it. For programs there are `code`, a word for each
class that does not change, and `param`, the name of the option at fault where it is one's. `exit_code` is
what the command line returns for the error: 2 for wrong use, 1 for everything else.
"""

from __future__ import annotations

import errno

_FULL = {  # what a disk says that takes no more
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full for this user",
    errno.EFBIG: "takes no file this large",
}


class FlatlmError(Exception):
    exit_code = 1
    code = "error"

    def __init__(self, message: str = "", *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UsageError(FlatlmError):
    exit_code = 2
    code = "invalid_request"


class SourceError(FlatlmError):
    code = "source_unreadable"


class UnsupportedError(SourceError):
    code = "source_unsupported"


class ArtifactError(FlatlmError):
    code = "artifact_unusable"


class FormatError(ArtifactError):
    code = "artifact_format"


class IntegrityError(ArtifactError):
    code = "artifact_damaged"


class TokenizerError(FlatlmError):
    code = "tokenizer_unusable"


class TemplateError(FlatlmError):
    code = "template_failed"


class ContextError(FlatlmError):
    code = "context_length_exceeded"


class BackendError(FlatlmError):
    code = "backend_unavailable"


class ResourceError(FlatlmError):
    code = "out_of_resources"


def full_disk(error: OSError) -> str | None:
    """What is to be said of a disk that did not take what was written, after its name; None: not the disk."""
    return _FULL.get(error.errno or 0)


def first_line(error: BaseException) -> str:
    """What another library's error says, in a line; its class where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
