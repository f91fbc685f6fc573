"""One user's GitHub identity and tokens (S20)."""
