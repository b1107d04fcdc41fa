"""The one error tree: each error has a code, a sentence that says what to do, an HTTP status and an exit code.

    TaskyardError                        500  1   internal_error
    ├── InvalidManifest                  400  1   invalid_manifest
    ├── InvalidParameter                 400  1   invalid_parameter
    ├── InvalidBody                      422  1   invalid_body
    ├── UsageError                       400  2   usage_error
    ├── UnsupportedMediaType             415  1   unsupported_media_type
    ├── PayloadTooLarge                  413  1   payload_too_large
    ├── RangeNotSatisfiable              416  1   range_not_satisfiable
    ├── RateLimitExceeded                429  1   rate_limit_exceeded
    ├── OriginRefused                    403  4   origin_refused
    ├── Unauthorized                     401  4   unauthorized
    ├── Forbidden                        403  4   forbidden
    ├── NotFound                         404  2   not_found
    │   ├── TaskNotFound                          task_not_found
    │   ├── ParentNotFound                        parent_not_found
    │   ├── ArtifactNotFound                      artifact_not_found
    │   ├── MachineNotFound                       machine_not_found
    │   └── ImageNotFound                         image_not_found
    ├── Conflict                         409  3   conflict
    │   ├── DuplicateTaskId                       duplicate_task_id
    │   ├── TaskAlreadyTerminal                   task_already_terminal
    │   ├── SessionClosed                         session_closed
    │   └── MachineUnavailable                    machine_unavailable
    ├── StaleEpoch                       421  1   stale_epoch
    ├── FileError                        422  1   file_error
    │   ├── FileNotFound                 404  2   file_not_found
    │   ├── FileExists                   409  3   file_exists
    │   ├── FileDenied                   403  4   file_denied
    │   ├── WrongFileType                409  3   wrong_file_type
    │   ├── DirectoryNotEmpty            409  3   directory_not_empty
    │   ├── GuestDiskFull                507  1   guest_disk_full
    │   └── ArchiveRefused               422  1   archive_refused
    ├── RepositoryError                  422  1   repository_error
    │   ├── RepositoryNotFound                    repository_not_found
    │   ├── RepositoryDenied                      repository_denied
    │   ├── RepositoryUnreachable                 repository_unreachable
    │   ├── RepositoryNotAllowed                  repository_not_allowed
    │   ├── RefNotFound                           ref_not_found
    │   └── PushRefused                           push_refused
    ├── SecretUnavailable                422  1   secret_unavailable
    │   └── SecretSourceAway                      secret_source_away
    ├── MachineError                     500  1   machine_error
    │   ├── MachineLost                  410  1   machine_lost
    │   ├── GuestUnreachable             504  1   guest_unreachable
    │   ├── PortRefused                  502  1   port_refused
    │   ├── GuestAnswerInvalid           502  1   guest_answer_invalid
    │   ├── AgentNotStopped                       agent_not_stopped
    │   └── ImageBuildFailed                      image_build_failed
    ├── InsufficientResources            507  1   insufficient_resources
    ├── ServiceUnavailable               503  5   service_unavailable
    │   ├── EngineUnavailable                     engine_unavailable
    │   ├── BucketUnavailable                     bucket_unavailable
    │   └── HostUnreachable                       host_unreachable
    ├── TimedOut                         504  5   timed_out
    ├── ForeignServer                    502  1   foreign_server
    └── HostNotReady                     503  1   host_not_ready

Exit codes follow the published client: 1 anything else, 2 not found, 3 conflict, 4 not authorised, 5 timed out or
not reachable (Task Orchestration contract, section 4.3).

Above 400 lines: it is one tree, drawn and read as a whole, and each error is a few lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from foundation.faults import Fault, as_details, sentence
from foundation.urls import without_credentials


class TaskyardError(Exception):
    """Root of all errors a user can meet.

    ``message`` is a sentence that says what was wrong and what to do. ``details`` holds JSON-ready facts. Both may
    repeat what somebody sent, so credentials in URLs are taken out of them.
    ``retryable`` says whether doing the same again can help; the workflow's retry policies read it.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        self.message = without_credentials(message)
        self.details = _bare(details)
        super().__init__(self.message)


def error_of(code: str) -> type[TaskyardError] | None:
    """The error that has the code; None when this version knows none."""
    pending: list[type[TaskyardError]] = [TaskyardError]
    while pending:
        error = pending.pop()
        if error.code == code:
            return error
        pending += error.__subclasses__()
    return None


def _bare(fact: Any) -> Any:
    """A fact without credentials."""
    if isinstance(fact, dict):
        return {key: _bare(value) for key, value in fact.items()}
    if isinstance(fact, list):
        return [_bare(part) for part in fact]
    return without_credentials(fact) if isinstance(fact, str) else fact


class InvalidManifest(TaskyardError):
    """The manifest was refused; ``details["errors"]`` lists every fault as ``{"field", "message", "validation"}``."""

    code = "invalid_manifest"
    http_status = 400

    @classmethod
    def of(cls, faults: Sequence[Fault]) -> Self:
        """The refusal of all these faults, of which there is at least one."""
        details = as_details(faults)
        return cls(sentence(details), field=details[0]["field"], validation=details[0]["validation"], errors=details)


class InvalidParameter(TaskyardError):
    """A query parameter, option or setting has a value that is not allowed."""

    code = "invalid_parameter"
    http_status = 400


class InvalidBody(TaskyardError):
    """The body is JSON of another shape than the endpoint takes; ``details["errors"]`` lists every fault."""

    code = "invalid_body"
    http_status = 422

    @classmethod
    def of(cls, faults: Sequence[Fault]) -> Self:
        """The refusal of all these faults, of which there is at least one."""
        details = as_details(faults)
        return cls(sentence(details), errors=details)


class UsageError(TaskyardError):
    """The command line, or a file or setting that it reads, is not one that the command can work with."""

    code = "usage_error"
    http_status = 400
    exit_code = 2


class UnsupportedMediaType(TaskyardError):
    """The body's content type is none that the endpoint reads."""

    code = "unsupported_media_type"
    http_status = 415


class PayloadTooLarge(TaskyardError):
    """The body is larger than the endpoint takes."""

    code = "payload_too_large"
    http_status = 413


class RangeNotSatisfiable(TaskyardError):
    """The range asked for begins beyond the end; ``details["size_bytes"]`` says where that is."""

    code = "range_not_satisfiable"
    http_status = 416


class RateLimitExceeded(TaskyardError):
    """The client asks more often than the server's settings allow."""

    code = "rate_limit_exceeded"
    http_status = 429


class OriginRefused(TaskyardError):
    """A browser sends this for a web page of another origin, which the server's settings do not allow."""

    code = "origin_refused"
    http_status = 403
    exit_code = 4


class Unauthorized(TaskyardError):
    """The server, or what stands before it, wants credentials."""

    code = "unauthorized"
    http_status = 401
    exit_code = 4


class Forbidden(TaskyardError):
    """The credentials given do not allow this."""

    code = "forbidden"
    http_status = 403
    exit_code = 4


class NotFound(TaskyardError):
    """What was named does not exist."""

    code = "not_found"
    http_status = 404
    exit_code = 2


class TaskNotFound(NotFound):
    """No task run has this id."""

    code = "task_not_found"


class ParentNotFound(NotFound):
    """No parent task has the id in this project."""

    code = "parent_not_found"


class ArtifactNotFound(NotFound):
    """The task run has no artifact of this name."""

    code = "artifact_not_found"


class MachineNotFound(NotFound):
    """No machine of this id is on this host."""

    code = "machine_not_found"


class ImageNotFound(NotFound):
    """The guest image is not built on this host, or the profile does not exist."""

    code = "image_not_found"


class Conflict(TaskyardError):
    """The request does not fit the state of what it names."""

    code = "conflict"
    http_status = 409
    exit_code = 3


class DuplicateTaskId(Conflict):
    """A task run with this id was already submitted."""

    code = "duplicate_task_id"


class TaskAlreadyTerminal(Conflict):
    """The task run has already ended."""

    code = "task_already_terminal"


class SessionClosed(Conflict):
    """The agent's session takes no further messages."""

    code = "session_closed"


class MachineUnavailable(Conflict):
    """The run has no machine that could be entered now: not yet, not any more, or it is paused."""

    code = "machine_unavailable"


class StaleEpoch(TaskyardError):
    """The machine has been started anew since it was looked up; look again."""

    code = "stale_epoch"
    http_status = 421
    retryable = True


class FileError(TaskyardError):
    """The guest could not do this with the file; ``details["path"]`` names it."""

    code = "file_error"
    http_status = 422


class FileNotFound(FileError):
    """The machine has no such file or directory."""

    code = "file_not_found"
    http_status = 404
    exit_code = 2


class FileExists(FileError):
    """Something is there already, and was not to be replaced."""

    code = "file_exists"
    http_status = 409
    exit_code = 3


class FileDenied(FileError):
    """The guest's user may not do this with the file."""

    code = "file_denied"
    http_status = 403
    exit_code = 4


class WrongFileType(FileError):
    """It is a directory where a file is needed, a file where a directory is, or neither."""

    code = "wrong_file_type"
    http_status = 409
    exit_code = 3


class DirectoryNotEmpty(FileError):
    """The directory has something in it."""

    code = "directory_not_empty"
    http_status = 409
    exit_code = 3


class GuestDiskFull(FileError):
    """The machine's disk has no room for this."""

    code = "guest_disk_full"
    http_status = 507


class ArchiveRefused(FileError):
    """The archive is damaged, or has a member that would leave its directory."""

    code = "archive_refused"
    http_status = 422


class RepositoryError(TaskyardError):
    """The repository could not be staged."""

    code = "repository_error"
    http_status = 422


class RepositoryNotFound(RepositoryError):
    """The server answered, and has no such repository."""

    code = "repository_not_found"


class RepositoryDenied(RepositoryError):
    """The server wants credentials that the run does not have."""

    code = "repository_denied"


class RepositoryUnreachable(RepositoryError):
    """The repository's server did not answer."""

    code = "repository_unreachable"
    retryable = True


class RepositoryNotAllowed(RepositoryError):
    """The repository's transport is not one that this installation allows."""

    code = "repository_not_allowed"


class RefNotFound(RepositoryError):
    """The repository has no such branch or commit, or no such subpath in it."""

    code = "ref_not_found"


class PushRefused(RepositoryError):
    """A run's work is not pushed, or not asked to be merged: by a rule of Taskyard's, or of the git host's."""

    code = "push_refused"


class SecretUnavailable(TaskyardError):
    """A secret reference cannot be resolved on the host."""

    code = "secret_unavailable"
    http_status = 422


class SecretSourceAway(SecretUnavailable):
    """What holds the secret cannot be reached, or gives out nothing now; it may yet."""

    code = "secret_source_away"
    retryable = True


class MachineError(TaskyardError):
    """The machine could not be made, started or entered."""

    code = "machine_error"
    retryable = True


class MachineLost(MachineError):
    """The machine's process has ended."""

    code = "machine_lost"
    http_status = 410
    retryable = False


class GuestUnreachable(MachineError):
    """The machine runs, but its guest does not answer; it may yet."""

    code = "guest_unreachable"
    http_status = 504


class PortRefused(MachineError):
    """Nothing listens on that port in the machine."""

    code = "port_refused"
    http_status = 502


class GuestAnswerInvalid(MachineError):
    """What listens on that port in the machine does not answer as HTTP has it, or broke off."""

    code = "guest_answer_invalid"
    http_status = 502


class AgentNotStopped(MachineError):
    """The guest answers, and its agent goes on all the same."""

    code = "agent_not_stopped"
    retryable = False


class ImageBuildFailed(MachineError):
    """The guest image could not be built."""

    code = "image_build_failed"
    retryable = False


class InsufficientResources(TaskyardError):
    """No host can ever give what the manifest asks for; ``details`` has requested and available figures."""

    code = "insufficient_resources"
    http_status = 507


class ServiceUnavailable(TaskyardError):
    """A service that the answer needs cannot be reached now."""

    code = "service_unavailable"
    http_status = 503
    exit_code = 5
    retryable = True


class EngineUnavailable(ServiceUnavailable):
    """Temporal cannot be reached."""

    code = "engine_unavailable"


class BucketUnavailable(ServiceUnavailable):
    """The bucket cannot be reached."""

    code = "bucket_unavailable"


class HostUnreachable(ServiceUnavailable):
    """The service of the VM host that has the machine cannot be reached; the machine may run all the same."""

    code = "host_unreachable"


class TimedOut(TaskyardError):
    """What was waited for did not happen in the time given; it may yet."""

    code = "timed_out"
    http_status = 504
    exit_code = 5


class ForeignServer(TaskyardError):
    """What answers under the server's address does not answer as Taskyard does."""

    code = "foreign_server"
    http_status = 502


class HostNotReady(TaskyardError):
    """Something that the command needs is missing on this host (``sandbox doctor`` says what)."""

    code = "host_not_ready"
    http_status = 503
