"""A model's layers compiled by torch: what is not a matmul takes fewer passes over memory.

The layers are compiled as they are; attention that goes by runs of tokens stays a call. One
compilation serves all layers and all sizes of a pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ebm_encode.engines.attention import stay_out_of_graphs
from ebm_encode.engines.flex import MOST_COMPILATIONS
from ebm_encode.engines.layer import blocks_of
from ebm_encode.errors import ModelError
from ebm_encode.loading.model import Model

BACKEND = "inductor"
"""The compiler of torch that compiles the layers."""


class CompiledLayers:
    """Compiled forms of a model's layers, made when they are first run.

    Args:
        model: The model.
        attention_in_graph: Whether attention is compiled with them.

    Raises:
        ModelError: If the layers of the model cannot be told apart.
    """

    def __init__(self, model: Model, *, attention_in_graph: bool) -> None:
        blocks = blocks_of(model)
        if blocks is None:
            raise ModelError(f"{model.name}: cannot tell the layers of this model apart")
        if not attention_in_graph:
            stay_out_of_graphs()
        # Kernels of attention want heads of a fixed width: there only what differs from pass to
        # pass becomes variable, by a second compilation.
        dynamic = None if attention_in_graph else True
        self._pairs = [
            (block, torch.compile(block.forward, dynamic=dynamic, backend=BACKEND))
            for block in blocks
        ]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model runs them; before and after, and for the reference, its own code runs."""
        for block, compiled in self._pairs:
            block.forward = compiled
        try:
            # torch's own limit, 8, is for all models of a process together.
            with torch._dynamo.config.patch(recompile_limit=MOST_COMPILATIONS):  # noqa: SLF001
                yield
        finally:
            for block, _ in self._pairs:
                del block.forward
