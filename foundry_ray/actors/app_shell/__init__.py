"""The application: sign-in, app sessions, API tokens, the directory of organizations."""
