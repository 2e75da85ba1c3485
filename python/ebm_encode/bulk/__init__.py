"""Bulk runs: states through an encoder into a cache."""
