"""The software that makes embeddings."""

import platform

import tokenizers
import torch
import transformers

from ebm_encode import _core


def versions() -> dict[str, str]:
    """The software that makes embeddings, and its versions."""
    return {
        "ebm_encode": _core.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
