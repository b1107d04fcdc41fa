"""The commands `sandbox server` and `sandbox worker`: Taskyard's two long-running processes, each on its own."""

from __future__ import annotations

# A follower of a run's log holds its connection open for as long as the run lasts.
_SERVER_GRACE_SECONDS = 3


def server() -> None:
    """Serve the REST API until SIGTERM or Ctrl-C. Any number of servers may run, on any hosts."""
    import uvicorn

    from api.app import create_app
    from cli.stack import prepare_engine
    from foundation.logs import configure_logs
    from foundation.settings import Settings

    settings = Settings()
    configure_logs(settings.log_format, "server")
    if not settings.embedded_temporal:
        prepare_engine(settings)
    uvicorn.run(
        create_app(settings),
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,
        timeout_graceful_shutdown=_SERVER_GRACE_SECONDS,
    )


def worker() -> None:
    """Run the worker of this VM host until SIGTERM or Ctrl-C. One per VM host; machines outlive it."""
    import asyncio

    from cli.stack import prepare_engine
    from foundation.logs import configure_logs
    from foundation.settings import Settings
    from worker.main import run

    settings = Settings()
    configure_logs(settings.log_format, "worker")
    if not settings.embedded_temporal:
        prepare_engine(settings)
    asyncio.run(run(settings))
