"""A model's files: where they are, which of them are loaded, and whether they stay as they were."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ebm_encode.errors import ModelError, one_line

ADAPTER_CONFIG = "adapter_config.json"
SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"

_HUB_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("vocab.json", "vocab.txt", "tokenizer_config.json"),
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What transformers saves of a model that is spread over several processes. It prefers these files
# to all others, and they are not read here.
_DISTRIBUTED = "shard-*-model-*-of-*.safetensors"


def find_folder(
    name: str,
    *,
    revision: str | None = None,
    with_code: bool = False,
    with_weights: bool = True,
) -> Path:
    """The folder of a model: the one given, or the hub's files, downloaded where needed.

    Args:
        name: Folder, or hub id.
        revision: Branch, tag or commit of a hub id; by default the hub's main branch.
        with_code: Whether code that comes with the model is needed.
        with_weights: Whether its weights are needed.

    Raises:
        ModelError: If there is no such folder and the hub does not have it or cannot be reached, or
            if the folder is not a model's.
    """
    if not name:
        raise ModelError("`model_path`: is empty, expected a model's folder or hub id")
    given = local_folder(name, "model_path")
    if given is not None and revision is not None:
        raise ModelError(
            f"`revision` {revision}: {name} is a folder, and only hub ids have revisions\n"
            "hint: leave `revision` out, or give the hub id"
        )
    path = given or download(name, revision, [*_HUB_FILES, *(["*.py"] if with_code else [])])
    _require_files(path, name)
    if with_weights:
        if given is None:
            _download_weights(name, path)
        weight_files(path)
    return path


def local_folder(name: str, argument: str) -> Path | None:
    """The folder of a name; `None` if there is nothing of that name here.

    Raises:
        ModelError: If it is something else, or cannot be a path; with the argument that named it.
    """
    try:
        path = Path(name).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, no such home
        raise ModelError(f"`{argument}` {name[:80]}: {one_line(error)}") from error
    if exists and not is_folder:
        raise ModelError(f"{name}: is a file, expected a folder or hub id (`{argument}`)")
    return path if is_folder else None


def commit_of(folder: Path) -> str | None:
    """The commit of the hub's that a folder holds; `None` for a folder that was given."""
    is_commit = _COMMIT.fullmatch(folder.name) and folder.parent.name == "snapshots"
    return folder.name if is_commit else None


def download(name: str, revision: str | None, patterns: list[str]) -> Path:
    """Downloads some files of a hub id, where they are not here yet; the folder with them.

    Raises:
        ModelError: If the hub does not have it or cannot be reached.
    """
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise ModelError(f"{name}: no such folder, and not a hub id") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        where = f" at revision {revision}" if revision else ""
        raise ModelError(
            f"{name}: no such folder, and not found on the Hugging Face Hub{where}:"
            f" {one_line(error)}"
        ) from error


def _download_weights(name: str, folder: Path) -> None:
    """Downloads the weight files that transformers loads.

    No others: repositories hold copies of the same weights in other forms.
    """
    commit = commit_of(folder)
    named = _named_weights(folder)
    choices = [named] if named else [SAFETENSORS, PICKLED]
    for choice in choices:
        index = folder / (choice if choice.endswith(".index.json") else f"{choice}.index.json")
        single = not choice.endswith(".index.json")
        if single:
            download(name, commit, [choice])
        if single and (folder / choice).is_file():
            return
        if index.is_file():
            download(name, commit, _shards_of(index))
            return


def _require_files(folder: Path, name: str) -> None:
    adapter = folder / ADAPTER_CONFIG
    if adapter.exists():  # before anything else: the folder of an adapter has no config.json
        raise ModelError(
            f"{name}: has an adapter (adapter_config.json){_base_of(adapter)}, and is no model by"
            " itself\nhint: give the base model, and this folder as `adapter`; or merge it (peft:"
            " merge_and_unload), save that with its tokenizer, and give that folder"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name}: the folder has no config.json; is it a model's folder?")
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise ModelError(f"{name}: has no tokenizer; expected one of {', '.join(_TOKENIZER_FILES)}")


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads(adapter.read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return ""
    return f" for {base}" if base else ""


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads weights from.

    Raises:
        ModelError: If there are none, or if some are missing.
    """
    if any(folder.glob(_DISTRIBUTED)):
        raise ModelError(
            f"{folder}: holds a distributed checkpoint ({_DISTRIBUTED}), which transformers would"
            " load instead of its other weights and which is not supported\n"
            "hint: save the model with save_pretrained in one process"
        )
    named = _named_weights(folder)
    if named is not None:
        return _named_files(folder, named)
    for kind in (SAFETENSORS, PICKLED):
        index = folder / f"{kind}.index.json"
        if (folder / kind).is_file():
            return [folder / kind]
        if index.is_file():
            return [folder / shard for shard in _shards(index)]
    raise ModelError(f"{folder}: has neither {SAFETENSORS} nor {PICKLED}")


def _named_weights(folder: Path) -> str | None:
    """The weight file that `config.json` names, which is taken whatever else is there."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None  # transformers says what is wrong with it
    named = config.get("transformers_weights") if isinstance(config, dict) else None
    if named is None:
        return None
    kinds = (".safetensors", ".safetensors.index.json")
    inside = isinstance(named, str) and not Path(named).is_absolute() and ".." not in named
    if not inside or not named.endswith(kinds):
        raise ModelError(
            f"{folder / 'config.json'}: transformers_weights is {named!r}, expected a"
            f" {' or '.join(kinds)} file of the folder"
        )
    return str(named)


def _named_files(folder: Path, named: str) -> list[Path]:
    file = folder / named
    if not file.is_file():
        raise ModelError(
            f"{folder / 'config.json'}: transformers_weights names {named}, which is not there"
        )
    return [file.parent / shard for shard in _shards(file)] if named.endswith(".json") else [file]


def _shards_of(index: Path) -> list[str]:
    try:
        parsed = json.loads(index.read_bytes())
        return sorted({str(shard) for shard in parsed["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: is no index of weight files: {one_line(error)}") from error


def _shards(index: Path) -> list[str]:
    shards = _shards_of(index)
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if absent or not shards:
        raise ModelError(f"{index}: names {', '.join(absent[:3]) or 'no file'}, not to be found")
    return shards


class FileStates:
    """How files were at one moment: size, times of modification and of inode change, inode.

    Weights are loaded first and digested later. A trainer that saves into the folder between the
    two would give the embeddings of one checkpoint the digest of another.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._before = {file: _state(file) for file in files}

    @classmethod
    def of_folder(cls, folder: Path, weights: list[Path]) -> "FileStates":
        """Of all files that may decide a model's numbers."""
        small = (p for p in folder.iterdir() if p.is_file() and p.suffix in _SMALL_FILES)
        return cls([*weights, *small, *folder.glob("**/*.py")])

    def require_unchanged(self, name: str) -> None:
        """Refuses a model whose files are not as they were.

        Raises:
            ModelError: If any was replaced, written or removed.
        """
        changed = sorted(file for file, before in self._before.items() if _state(file) != before)
        if changed:
            raise ModelError(
                f"{name}: {changed[0].name} changed while the model was being loaded; what was"
                " loaded cannot be identified\nhint: load it again once nothing writes to the"
                " folder, or a copy of it"
            )


_SMALL_FILES = {".json", ".jinja", ".model", ".txt", ".tiktoken"}


def _state(file: Path) -> tuple[int, int, int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def auto_map_of(folder: Path) -> dict[str, Any]:
    """Which classes the model's own files name for which Auto class, from all its settings."""
    found: dict[str, Any] = {}
    for file in ("config.json", "tokenizer_config.json"):
        try:
            settings = json.loads((folder / file).read_bytes())
        except (OSError, ValueError):
            continue
        named = settings.get("auto_map") if isinstance(settings, dict) else None
        if isinstance(named, dict):
            found |= named
    return found


def foreign_code(folder: Path, name: str) -> list[str]:
    """The repositories, other than the model's own, from which `auto_map` takes code."""
    references: list[Any] = []
    for value in auto_map_of(folder).values():
        references += value if isinstance(value, list | tuple) else [value]
    repositories = {r.split("--")[0] for r in references if isinstance(r, str) and "--" in r}
    return sorted(repositories - {name})
