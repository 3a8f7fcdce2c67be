"""How commands start, stop, and speak to the user."""
