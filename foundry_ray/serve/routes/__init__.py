"""The routes, by what they are about; each carries its full path."""
