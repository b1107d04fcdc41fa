"""Requests and answers as they look, for the OpenAPI description."""

from __future__ import annotations

from typing import Any

from api.native.bodies import Addition, Cancellation, Continuation, Execution, SentMessage, SentNetwork
from foundation.service.files import Changes
from foundation.service.processes import ProcessSpec, SentSignal

_BASE = "/api/v1/tasks"
_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

_MANIFEST_EXAMPLE = """\
version: "1"
kind: Task
metadata:
  name: "My Task"
repository:
  url: "https://github.com/org/repo.git"
  branch: "main"
claude:
  prompt: "Your instructions here"
"""
_MANIFEST_OBJECT = {
    "version": "1",
    "kind": "Task",
    "metadata": {"name": "My Task"},
    "repository": {"url": "https://github.com/org/repo.git", "branch": "main"},
    "claude": {"prompt": "Your instructions here"},
}
MANIFEST_BODY = {
    "requestBody": {
        "required": True,
        "description": "A manifest as YAML or JSON, or an envelope with manifest_yaml or manifest",
        "content": {
            "application/yaml": {"schema": {"type": "string"}, "example": _MANIFEST_EXAMPLE},
            "application/json": {
                "schema": {"type": "object"},
                "examples": {
                    "manifest": {"value": _MANIFEST_OBJECT},
                    "envelope": {"value": {"manifest_yaml": _MANIFEST_EXAMPLE}},
                },
            },
        },
    }
}
LABEL_PARAMETER = {
    "parameters": [
        {
            "name": "label.KEY",
            "in": "query",
            "required": False,
            "description": "Only runs with this value of the label KEY; several labels must all fit",
            "schema": {"type": "string"},
            "example": "platform",
        }
    ]
}
CANCEL_BODY = {
    "requestBody": {
        "required": False,
        "content": {
            "application/json": {
                "schema": Cancellation.model_json_schema(),
                "example": {"reason": "No longer needed", "force": False},
            }
        },
    }
}
RESUME_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": Continuation.model_json_schema()}},
    }
}
CONTINUE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": Addition.model_json_schema(), "example": {"budget_usd": 5}}},
    }
}
MESSAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": SentMessage.model_json_schema()}},
    }
}
NETWORK_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": SentNetwork.model_json_schema(),
                "example": {"allow": ["api.example.org"], "remove": ["old.example.org"]},
            }
        },
    }
}


def whole(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the parts that it names in their places: an OpenAPI document has them elsewhere."""
    parts = schema.pop("$defs", {})

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            named = str(node.get("$ref", "")).rpartition("/")[2]
            if named in parts:
                return filled(parts[named])
            # Which part is meant, each says by itself; a discriminator names them where they are no longer.
            return {key: filled(value) for key, value in node.items() if key != "discriminator"}
        return [filled(each) for each in node] if isinstance(node, list) else node

    return dict(filled(schema))


EXECUTION_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": whole(Execution.model_json_schema()),
                "example": {"argv": ["git", "status", "-s"]},
            }
        },
    }
}
CHANGES_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": whole(Changes.model_json_schema()),
                "example": {"changes": [{"operation": "remove", "path": "build", "directories": "recursive"}]},
            }
        },
    }
}
PROCESS_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": whole(ProcessSpec.model_json_schema()),
                "example": {"key": "build-1", "shell": "make && make check", "limits": {"timeout": 600}},
            }
        },
    }
}
PROCESS = {
    "key": "build-1",
    "state": "exited",
    "exit_code": 0,
    "signal": None,
    "reason": None,
    "started_at": "2026-01-15T10:00:00Z",
    "ended_at": "2026-01-15T10:02:05Z",
    "stdout_bytes": 8190,
    "stderr_bytes": 0,
}
SIGNAL_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": whole(SentSignal.model_json_schema()), "example": {"signal": "TERM"}}
        },
    }
}
EXECUTED = """\
{"started": {"pid": 512}}
{"stream": "stdout", "text": " M README.md\\n"}
{"exit": {"code": 0, "signal": null, "reason": null}}
"""

SUBMITTED = {
    "task_id": "task-001",
    "accepted": True,
    "state": "pending",
    "message": "Task accepted and queued for execution",
    "created_at": "2026-01-29T10:00:00Z",
    "links": {
        "self": f"{_BASE}/task-001",
        "logs": f"{_BASE}/task-001/logs",
        "artifacts": f"{_BASE}/task-001/artifacts",
    },
    "warnings": [],
}
CHECKED = {
    "valid": True,
    "accepted": False,
    "task_id": "",
    "message": "The manifest is valid; nothing was started",
    "warnings": [],
}
SUMMARY = {
    "id": "task-001",
    "name": "Fix auth bug",
    "state": "running",
    "labels": {"team": "platform"},
    "created_at": "2026-01-29T10:00:00Z",
    "started_at": "2026-01-29T10:00:02Z",
    "state_changed_at": "2026-01-29T10:00:40Z",
    "state_message": "Claude Code executing",
    "vm_name": "vm-0123456789abcdef",
    "vm_ip": "10.0.2.15",
    "exit_code": None,
    "error": None,
    "cause": None,
    "progress": {
        "output_bytes": 45678,
        "tool_calls": 23,
        "current_tool": "Bash",
        "last_activity_at": "2026-01-29T10:25:30Z",
    },
}
DETAIL: dict[str, Any] = SUMMARY | {
    "live": True,
    "host": "vmhost-1",
    "base_commit": "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00",
    "continues": [],
    "result": None,
    "output": None,
    "ssh_command": None,
    "preserved_until": None,
    "decision_until": None,
    "usage": {
        "requests": 12,
        "input_tokens": 1200,
        "output_tokens": 8500,
        "cache_creation_input_tokens": 40000,
        "cache_read_input_tokens": 350000,
        "cost_usd": 0.39,
        "unpriced_tokens": 0,
        "unpriced_usd": 0.0,
        "unpriced_models": [],
        "budget_usd": 5.0,
        "budget_tokens": None,
    },
    "network_policy": {"mode": "outbound", "hosts": ["api.example.org"]},
    "network": None,
    "transitions": [
        {"state": "pending", "at": "2026-01-29T10:00:00Z"},
        {"state": "staging", "at": "2026-01-29T10:00:02Z"},
    ],
    "undelivered_messages": [],
    "permission_requests": [],
    "notes": [],
    "definition": {
        "repository": {"url": "https://github.com/org/repo.git", "branch": "main"},
        "claude": {"prompt": "Your instructions here"},
        "vm": {"profile": "agentic-dev", "cpus": 4, "memory": "8G", "disk": "40G"},
        "lifecycle": {"timeout": "24h", "failure_action": "destroy"},
    },
}
LIST = {"tasks": [SUMMARY], "total_count": 1, "limit": 100, "offset": 0, "has_more": False}
CANCELLED = {
    "success": True,
    "task_id": "task-001",
    "previous_state": "running",
    "new_state": "cancelled",
    "message": "Cancellation requested",
    "cancelled_at": "2026-01-29T10:30:00Z",
}
MESSAGE = {"accepted": True, "task_id": "task-001", "message_id": "m-1"}
CONTINUED = {"accepted": True, "task_id": "task-001", "budget_usd": 10.0, "budget_tokens": None}
NETWORK = {
    "task_id": "task-001",
    "policy": {"mode": "outbound", "hosts": ["api.example.org"]},
    "in_force": True,
    "live": True,
    "use": {
        "allowed": 12,
        "blocked": 2,
        "sent_bytes": 4096,
        "received_bytes": 1048576,
        "hosts": [
            {
                "host": "api.example.org",
                "port": 443,
                "allowed": 12,
                "blocked": 0,
                "sent_bytes": 4096,
                "received_bytes": 1048576,
                "reason": None,
            }
        ],
    },
    "warnings": [],
}
ARTIFACTS = {
    "task_id": "task-001",
    "artifacts": [
        {
            "name": "report.md",
            "path": "report.md",
            "size_bytes": 4,
            "content_type": "text/markdown",
            "checksum": f"sha256:{_DIGEST}",
            "created_at": "2026-01-29T10:30:00Z",
            "download_url": f"{_BASE}/task-001/artifacts/report.md",
            "redacted": False,
            "hidden": False,
        }
    ],
    "total_count": 1,
    "total_size_bytes": 4,
}
HEALTH = {
    "status": "ok",
    "version": "0.1.0",
    "uptime_seconds": 3600,
    "agents": {"connected": 1, "ready": 1},
    "tasks": {"running": 2, "pending": 5},
}


def answer(example: Any, status: int = 200, description: str = "It was done") -> dict[int | str, dict[str, Any]]:
    """The described answer of an endpoint, for its ``responses``."""
    return {status: {"description": description, "content": {"application/json": {"example": example}}}}
