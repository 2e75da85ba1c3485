"""A server's GPU memory, borrowed: given back by the server without ending it, and returned."""

from ebm_encode.servers.guard.guard import ServerGuard

__all__ = ["ServerGuard"]
