"""Reads one running agent turn and feeds its session (S6)."""
