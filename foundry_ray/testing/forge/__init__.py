"""The local forge: a GitHub-shaped server on real git, in a process of its own.

Real bare repositories, real merges, signed webhooks, OAuth and GitHub App tokens on one loopback
port; unmodified GitHub clients talk to it. For the demo and for tests, never part of a production
process.
"""
