"""A conversation in a terminal, in parts: what was said, what is typed, what is shown, and the /commands."""
