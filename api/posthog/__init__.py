"""The task-runs dialect: the paths, bodies and words of PostHog's task runs over the core of runs."""
