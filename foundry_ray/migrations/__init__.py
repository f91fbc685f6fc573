"""Floor 5: Alembic migrations."""
