"""A causal language model as a policy: states in, tactics with their log-probabilities out."""
