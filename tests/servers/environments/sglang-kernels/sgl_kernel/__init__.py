"""Stand-in for the GPU kernels that SGLang imports by name; a float32 Llama on a CPU calls none."""


def __getattr__(name: str):
    if name.startswith("__"):  # such as __path__: the import system asks for them
        raise AttributeError(name)

    def kernel(*_: object, **__: object) -> None:
        message = f"{name} is a GPU kernel, and this is a stand-in"
        raise NotImplementedError(message)

    return kernel
