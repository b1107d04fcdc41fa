"""The commands `sandbox server` and `sandbox worker`: Taskyard's two long-running processes, each on its own."""

from __future__ import annotations

# Far beyond what a host's machines need, and little enough for programs that go through all that they may have.
_DESCRIPTORS = 65536


def server() -> None:
    """Serve the REST API and the WebSocket until SIGTERM or Ctrl-C. Any number of servers may run, on any hosts."""
    from api.app import create_app
    from api.http.serving import listening, make_server
    from cli.stack.up import prepare_engine
    from foundation.logs import configure_logs
    from foundation.settings import Settings

    settings = Settings()
    configure_logs(settings.log_format, "server")
    settings.make_home()
    if not settings.embedded_temporal:
        prepare_engine(settings)
    make_server(create_app(settings)).run(sockets=listening(settings))


def worker() -> None:
    """Run the worker of this VM host until SIGTERM or Ctrl-C. One per VM host; machines outlive it."""
    from cli.stack.up import prepare_engine
    from foundation.logs import configure_logs
    from foundation.settings import Settings
    from worker.event_loop import run_on_loop
    from worker.main import run

    settings = Settings()
    configure_logs(settings.log_format, "worker")
    settings.make_home()
    _allow_descriptors()
    if not settings.embedded_temporal:
        prepare_engine(settings)
    run_on_loop(run(settings))


def _allow_descriptors() -> None:
    """Let this process open as many files and connections as the system lets it: each run and each guest needs some."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
