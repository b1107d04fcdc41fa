"""What messages between processes are made of: tolerant models, texts of limited length, and the lease of a machine."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict


class Message(BaseModel):
    """Base of all messages: unknown fields are kept out, so that old and new processes understand one another."""

    model_config = ConfigDict(extra="ignore")


# --- limits: what others say goes into history and memo, and Temporal ends a run that overfills them

SENTENCE_CHARS = 2_000
NAME_CHARS = 500
RESULT_CHARS = 32_768
LABELS_MOST = 100


def cut(text: str, most: int) -> str:
    """The text, cut to ``most`` characters of which the last then is an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _cut_labels(labels: Any) -> Any:
    """So many labels, so long, of those that are text."""
    if not isinstance(labels, dict):
        return labels
    kept = list(labels.items())[:LABELS_MOST]
    return {cut(str(key), NAME_CHARS): cut(str(value), NAME_CHARS) for key, value in kept}


Sentence = Annotated[str, AfterValidator(lambda text: cut(text, SENTENCE_CHARS))]
Name = Annotated[str, AfterValidator(lambda text: cut(text, NAME_CHARS))]
Result = Annotated[str, AfterValidator(lambda text: cut(text, RESULT_CHARS))]
Labels = Annotated[dict[str, str], BeforeValidator(_cut_labels)]


class Lease(Message):
    """Room reserved on one host: later steps run on ``task_queue``, which only that host polls.

    The agent is followed on ``agent_queue``, so that no other step waits behind followers; hosts of earlier versions
    give none and do all on one queue.
    """

    machine_id: str
    host: Name
    task_queue: str
    agent_queue: str | None = None
