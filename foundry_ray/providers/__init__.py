"""Floor 3: who makes sandboxes."""
