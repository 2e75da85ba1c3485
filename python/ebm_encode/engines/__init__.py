"""Engines: ways to run token sequences through a model, one pooled embedding per sequence."""
