"""Floor 3: systems of others, each a port and its adapter."""
