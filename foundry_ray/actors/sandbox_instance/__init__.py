"""One sandbox and everything that is done in it (S8, S18)."""
