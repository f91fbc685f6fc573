"""One agent session of a task: prompts, transcript, permissions (S5)."""
