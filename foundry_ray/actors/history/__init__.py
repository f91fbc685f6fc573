"""What happened in one repository: append-only (S11)."""
