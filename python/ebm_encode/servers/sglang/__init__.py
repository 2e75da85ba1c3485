"""SGLang servers that return hidden states."""
