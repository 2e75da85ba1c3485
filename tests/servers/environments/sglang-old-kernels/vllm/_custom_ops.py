"""Quantized kernels; a float32 model calls none."""


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)

    def kernel(*_: object, **__: object) -> None:
        message = f"{name} is a kernel of vLLM, and this is a stand-in"
        raise NotImplementedError(message)

    return kernel
