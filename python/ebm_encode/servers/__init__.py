"""Inference servers: clients that check every reply, and what guards a server's memory."""
