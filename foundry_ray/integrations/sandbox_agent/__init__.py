"""sandbox-agent: the port, the HTTP adapter, and what is shipped into a sandbox."""
