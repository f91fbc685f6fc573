"""One repository: coordinator of branches and tasks (S13)."""
