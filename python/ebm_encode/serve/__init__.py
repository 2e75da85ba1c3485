"""`ebm-encode serve`: embeddings over HTTP."""
