"""The library's messages in the words of the command line: `max_length` becomes --max-length."""

import re

_OPTIONS = {
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            *("adapter", "architecture", "batch_size", "batch_states", "cache", "checkpoint_rows"),
            *("checkpoint_seconds", "clip", "column", "device", "distance_scale", "dropout"),
            *("distance_weight", "epochs", "figure", "learning_rate", "log_file", "loss"),
            *("labels", "max_missing", "members", "pair_weight", "patience", "random_cache"),
            *("seed", "seeds", "test", "validation", "warmup", "weight_decay"),
            *("dtype", "engine", "invalid_rows", "layer", "max_batch_tokens", "max_length"),
            *("model_path", "output", "overlong", "overwrite", "pooling", "template"),
            *("state_format", "states_in"),
            *("backend", "server", "server_exclusive", "server_token_file", "host", "token_file"),
            *("memory_fraction", "append_to"),
            *("code_revision", "revision", "trajectories", "trust_remote_code", "verify_sample"),
        )
    },
    "compile_layers": "--compile",
}
_ARGUMENT = re.compile(r"`(\w+)(?:=(?:True|\"?([\w.-]+)\"?))?`")


def as_options(message: str) -> str:
    """A message whose arguments in backticks, also with a value, are options."""
    return _ARGUMENT.sub(_option, message)


def _option(match: re.Match[str]) -> str:
    name, value = match.groups()
    option = _OPTIONS.get(name)
    if option is None:
        return match.group()
    return f"{option} {value}" if value else option
