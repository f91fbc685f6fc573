"""Every message a kind declares, sent once through the durable path, and the effect it commits.

Each case runs on a real PostgreSQL and the real in-process kernel: the message enters through
the client, the actor of its kind handles it, and the case reads what the turn committed.
"""
