"""Defaults of options that the command line and the library share. Imports nothing heavy."""

DEFAULT_COLUMN = "state_pp"
"""The column or JSON field that holds the state."""
