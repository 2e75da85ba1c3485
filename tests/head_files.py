"""Head files, written by torch and safetensors as `docs/head-format.md` says."""

import json
from itertools import pairwise

import torch
from safetensors.torch import save_file

SIGN = "energy: lower is better; score = -energy"


def perceptrons(dims, members, seed=0):
    """The members in torch, in float64."""
    torch.manual_seed(seed)
    made = []
    for _ in range(members):
        layers = []
        for inputs, outputs in pairwise(dims):
            layers += [torch.nn.Linear(inputs, outputs, dtype=torch.float64), torch.nn.SiLU()]
        made.append(torch.nn.Sequential(*layers[:-1]))
    return made


def tensors_of(models):
    return {
        f"member.{m}.layer.{number}.{name}": getattr(layer, name).detach().float().contiguous()
        for m, model in enumerate(models)
        for number, layer in enumerate(model[::2])
        for name in ("weight", "bias")
    }


def head_of(identity, dims, members, /, **changes):
    whole = {
        "identity": json.loads(identity.to_json()),
        "architecture": {"dims": dims, "activation": "silu", "members": members},
        "sign": SIGN,
        "score_scale": {"mean": -0.75, "deviation": 2.0},
        "training": {"seeds": [0]},
    }
    whole |= changes
    return {key: value for key, value in whole.items() if value is not None}


def save_head(path, models, head, *, tensors=None, metadata=None):
    """Writes a head, with tensors and metadata added, changed, or (`None`) left out."""
    tensors = tensors_of(models) | (tensors or {})
    texts = {"format": "ebm-encode-head", "version": "1", "head": json.dumps(head)}
    texts |= metadata or {}
    texts = {key: text for key, text in texts.items() if text is not None}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path, metadata=texts or None)


def energies_of(models, rows, dtype):
    """What torch gives: the mean over the members."""
    with torch.no_grad():
        inputs = torch.from_numpy(rows).to(dtype)
        # As the file has them: rounded to float32.
        each = [model.float().to(dtype)(inputs)[:, 0] for model in models]
        return torch.stack(each).mean(0).double().numpy()
