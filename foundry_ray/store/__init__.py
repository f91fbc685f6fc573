"""Floor 1: PostgreSQL as such."""
