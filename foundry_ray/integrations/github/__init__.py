"""GitHub: the port, the PyGithub adapter, webhook signatures."""
