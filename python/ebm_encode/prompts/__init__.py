"""Prompts: states to token ids."""
