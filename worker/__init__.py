"""The worker process: task queues, model gateway, sweeper."""
