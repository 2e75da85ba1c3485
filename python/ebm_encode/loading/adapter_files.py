"""A PEFT adapter's files: where they are, what they hold, and their digest."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ebm_encode.digests import digest_files, digest_json
from ebm_encode.errors import AdapterError, ModelError, one_line
from ebm_encode.loading.model_files import ADAPTER_CONFIG, commit_of, download, local_folder

SAFETENSORS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"

# Settings that change no merged weight: where the adapter comes from, and how it was trained.
_WITHOUT_EFFECT = {
    *("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "task_type"),
    *("inference_mode", "init_lora_weights", "init_weights", "lora_dropout", "rank_dropout"),
    *("module_dropout", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
# peft writes these from sets, in any order.
_SETS = {"target_modules", "exclude_modules", "modules_to_save", "feedforward_modules"}


@dataclass(frozen=True)
class Adapter:
    """An adapter of a model, on disk.

    Attributes:
        name: The path or hub id as given.
        folder: The folder with its files.
        settings: What adapter_config.json holds.
        file: The file with its tensors.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    file: Path

    @property
    def config(self) -> Path:
        """The file with its settings."""
        return self.folder / ADAPTER_CONFIG

    @property
    def files(self) -> tuple[Path, Path]:
        """Both of its files."""
        return (self.config, self.file)

    @property
    def kind(self) -> str:
        """Its kind, as peft calls it: `LORA`."""
        return str(self.settings["peft_type"])

    @property
    def stated_base(self) -> str | None:
        """The model that it was trained on, as its settings say; perhaps a path elsewhere."""
        stated = self.settings.get("base_model_name_or_path")
        return stated if isinstance(stated, str) and stated else None

    def digest(self) -> str:
        """Digest of its tensors, and of the settings that change what they do: `blake3:<hex>`.

        Raises:
            OSError: If the tensors cannot be read.
        """
        settings = {k: _plain(k, v) for k, v in self.settings.items() if k not in _WITHOUT_EFFECT}
        # Settings without a value are those that a release of peft knows and the adapter does not.
        settings = {k: v for k, v in settings.items() if v is not None and v != []}
        return digest_json({"weights": digest_files([self.file]), "settings": settings})

    def describe(self) -> dict[str, Any]:
        """What it is, for records; JSON values only."""
        commit = commit_of(self.folder)
        return {"name": self.name, "kind": self.kind, "base": self.stated_base} | (
            {"commit": commit} if commit else {}
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by name, float32, on the CPU.

        Raises:
            AdapterError: If the file is damaged, holds no numbers, or NaN or infinity.
        """
        try:
            if self.file.name == SAFETENSORS:
                found = load_file(self.file)
            else:  # the same rule as for weights of models: pickles of tensors, not of code
                found = torch.load(self.file, map_location="cpu", weights_only=True)
            tensors = {name: tensor.float() for name, tensor in found.items()}
        except Exception as error:  # a damaged file makes the libraries raise anything
            raise AdapterError(f"{self.file}: cannot be read: {one_line(error)}") from error
        if not tensors:
            raise AdapterError(f"{self.file}: holds no tensors")
        bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        if bad:
            raise AdapterError(f"{self.file}: holds NaN or infinity, in {some(bad)}")
        return tensors


def find_adapter(name: str) -> Adapter:
    """The adapter of a folder or hub id, its files downloaded where needed.

    Args:
        name: Folder; or hub id, with `@` and a branch, tag or commit behind it if wanted.

    Raises:
        AdapterError: If there is none, or its files are missing or damaged.
    """
    if not name:
        raise AdapterError("`adapter`: is empty, expected an adapter's folder or hub id")
    with _as_adapter():
        folder = local_folder(name, "adapter") or _downloaded(name)
    config = folder / ADAPTER_CONFIG
    try:
        settings = json.loads(config.read_bytes())
    except FileNotFoundError as error:
        raise AdapterError(
            f"`adapter` {name}: has no {ADAPTER_CONFIG}; is it the folder that peft saved?"
        ) from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"{config}: cannot be read: {one_line(error)}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise AdapterError(f"{config}: has no peft_type; is it an adapter of peft?")
    file = next((f for n in (SAFETENSORS, PICKLED) if (f := folder / n).is_file()), None)
    if file is None:
        raise AdapterError(f"`adapter` {name}: {folder} has neither {SAFETENSORS} nor {PICKLED}")
    return Adapter(name, folder, settings, file)


def some(names: list[str]) -> str:
    """The first of some names, for an error."""
    return ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")  # noqa: PLR2004


def _downloaded(name: str) -> Path:
    hub_id, _, revision = name.partition("@")
    folder = download(hub_id, revision or None, [ADAPTER_CONFIG, SAFETENSORS])
    if not (folder / SAFETENSORS).is_file():
        download(hub_id, commit_of(folder), [PICKLED])
    return folder


@contextmanager
def _as_adapter() -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise AdapterError(str(error)) from error


def _plain(name: str, value: Any) -> Any:
    """A setting, for a digest: sets sorted; patterns in their order, as the first one counts."""
    if name in _SETS and isinstance(value, list):
        return sorted(map(str, value))
    return [[key, item] for key, item in value.items()] if isinstance(value, dict) else value
