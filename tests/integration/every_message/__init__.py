"""One case for each message that a kind of entity declares."""
