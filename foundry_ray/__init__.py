"""Foundry runs coding agents for a team on a Ray cluster."""

__version__ = "0.1.0"
