"""One task: one branch, from create to archive (S14)."""
