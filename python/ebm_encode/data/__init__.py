"""Input files to distinct states."""
