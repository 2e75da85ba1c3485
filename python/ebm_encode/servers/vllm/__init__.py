"""vLLM servers that pool."""
