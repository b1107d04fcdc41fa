"""The Python client of the REST API: ``TaskClient``, and ``AsyncTaskClient`` for asyncio, with the same methods.

    from client import TaskClient

    with TaskClient("http://localhost:8122") as tasks:
        task_id = tasks.submit(Path("task.yaml").read_text())
        for line in tasks.logs(task_id, follow=True):
            print(line.data or line.event)
        if tasks.wait(task_id).state == "completed":
            for artifact in tasks.artifacts(task_id):
                tasks.download(task_id, artifact.name, Path(artifact.name).name)

Every refusal is raised as the class of ``foundation.errors`` that the server's error code names.
"""

from client.asynchronous import AsyncTaskClient
from client.blocking import TaskClient
from client.calls import DEFAULT_SERVER, PATIENCE_SECONDS
from client.refusals import faults
from client.replies import Artifact, LogLine, Progress, Task, TaskPage, Transition

__all__ = [
    "DEFAULT_SERVER",
    "PATIENCE_SECONDS",
    "Artifact",
    "AsyncTaskClient",
    "LogLine",
    "Progress",
    "Task",
    "TaskClient",
    "TaskPage",
    "Transition",
    "faults",
]
