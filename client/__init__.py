"""The Python client of the REST API: ``TaskClient``, and ``AsyncTaskClient``, whose methods are awaited.

    from client import TaskClient

    with TaskClient("http://localhost:8122") as tasks:
        task_id = tasks.submit(Path("task.yaml").read_text())
        for line in tasks.logs(task_id, follow=True):
            print(line.data or line.event)
        if tasks.wait(task_id).state == "completed":
            for fetched in tasks.download_all(task_id, "out"):
                print(fetched.path, fetched.error or "")

Every refusal is raised as the class of ``foundation.errors`` that the server's error code names.
"""

from client.refusals import faults
from client.tasks.asynchronous import AsyncTaskClient
from client.tasks.blocking import TaskClient
from client.tasks.calls import DEFAULT_SERVER, PATIENCE_SECONDS
from client.tasks.download import Fetched
from client.tasks.executing import Executed
from client.tasks.processes import Process
from client.tasks.replies import (
    Answered,
    Artifact,
    Cleared,
    Configured,
    Continued,
    LogLine,
    NetworkUse,
    PermissionRequest,
    Progress,
    Pushed,
    RunNetwork,
    Task,
    TaskPage,
    Transition,
    Usage,
    Waiting,
)
from foundation.service.files import Changed, Extracted, FileInfo, FileList

__all__ = [
    "DEFAULT_SERVER",
    "PATIENCE_SECONDS",
    "Answered",
    "Artifact",
    "AsyncTaskClient",
    "Changed",
    "Cleared",
    "Configured",
    "Continued",
    "Executed",
    "Extracted",
    "Fetched",
    "FileInfo",
    "FileList",
    "LogLine",
    "NetworkUse",
    "PermissionRequest",
    "Process",
    "Progress",
    "Pushed",
    "RunNetwork",
    "Task",
    "TaskClient",
    "TaskPage",
    "Transition",
    "Usage",
    "Waiting",
    "faults",
]
