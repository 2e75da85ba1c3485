"""The training iteration: steps, their records, and the inference server beside them."""
