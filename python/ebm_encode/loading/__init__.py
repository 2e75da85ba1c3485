"""Models: their files, their weights, and whether these are what was saved."""
