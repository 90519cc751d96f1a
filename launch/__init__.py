"""The command line: studies run by Ray, tracked by MLflow."""
