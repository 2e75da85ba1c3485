"""Stand-in for what SGLang 0.4.9 imports from vLLM on a CPU: norms and activations of a Llama."""
