"""The Task Orchestration dialect: its paths, bodies, answers and errors."""
