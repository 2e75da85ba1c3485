"""Energy heads from files of torch: the same numbers, and no file that is not a head."""

import struct

import numpy as np
import pytest
import torch

from ebm_encode import EmbeddingCache, EnergyHead
from ebm_encode.errors import (
    ArgumentError,
    EbmEncodeError,
    HeadFormatError,
    HeadNotFoundError,
    IdentityMismatchError,
)
from head_files import energies_of, head_of, perceptrons, save_head

MIXING = {"weight": 0.5, "policy": {"mean": -3.5, "deviation": 1.25, "depth_exponent": 0.5}}
ARCHITECTURES = {
    "linear": ([48, 1], 1),
    "one row of numbers": ([1, 1], 1),
    "hidden": ([48, 40, 24, 1], 1),
    "odd": ([37, 71, 3, 1], 1),
    "origin": ([24, 2048, 1024, 512, 1], 1),
    "linear ensemble": ([48, 1], 3),
    "ensemble": ([48, 256, 64, 1], 3),
}


@pytest.fixture
def write_head(tmp_path, identity):
    """A function that writes a head, with tensors, keys and metadata changed."""

    def write(dims=(48, 40, 24, 1), members=1, *, seed=0, tensors=None, metadata=None, **changes):
        path = tmp_path / "head.safetensors"
        models = perceptrons(dims, members, seed)
        head = head_of(identity(), list(dims), members, **changes)
        save_head(path, models, head, tensors=tensors, metadata=metadata)
        return path, models

    return write


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_energies_are_those_of_torch(write_head, rows, kind, dtype):
    dims, members = ARCHITECTURES[kind]
    path, models = write_head(dims, members)
    head = EnergyHead.open(path)
    for count in (1, 2, 7, 64, 65, 300):
        some = rows(count, dims[0], seed=count)
        found = head.energies(some)
        right = energies_of(models, some, dtype)
        assert found.dtype == np.float32
        assert found.shape == (count,)
        assert np.abs(found - right).max() <= 1e-5 * np.abs(right).max()
    assert head.energies(rows(0, dims[0])).shape == (0,)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_energy_does_not_depend_on_the_rows_beside_it(write_head, rows, kind):
    dims, members = ARCHITECTURES[kind]
    head = EnergyHead.open(write_head(dims, members)[0])
    some = rows(200, dims[0])
    together = head.energies(some)
    for count in (1, 2, 3, 17, 64):
        parts = [head.energies(some[at : at + count]) for at in range(0, 200, count)]
        assert np.concatenate(parts).tobytes() == together.tobytes(), count


def test_a_lower_energy_is_a_higher_score(write_head, rows):
    """The sign: the state whose energy torch says is lowest has the highest score."""
    path, models = write_head()
    head = EnergyHead.open(path)
    some = rows(50, 48)
    right = energies_of(models, some, torch.float64)
    assert right.std() > 0.01
    assert np.argsort(head.energies(some)).tolist() == np.argsort(right).tolist()
    assert np.argsort(head.scores(some)).tolist() == np.argsort(-right).tolist()
    assert np.argsort(head.z_scores(some)).tolist() == np.argsort(-right).tolist()
    assert head.scores(some)[right.argmin()] == head.scores(some).max()
    assert np.array_equal(head.scores(some), -head.energies(some))
    expected = (-right - -0.75) / 2.0
    assert np.allclose(head.z_scores(some), expected, rtol=0, atol=1e-5)


def test_a_head_of_hand_made_weights(write_head):
    """Numbers worked out on paper: no torch on either side of the comparison."""
    tensors = {
        "member.0.layer.0.weight": torch.tensor([[2.0, -1.0, 0.5]]),
        "member.0.layer.0.bias": torch.tensor([0.25]),
    }
    head = EnergyHead.open(write_head([3, 1], tensors=tensors)[0])
    rows = np.array([[1, 2, 4], [0, 0, 0], [-1, 1, 0]], np.float32)
    assert head.energies(rows).tolist() == [2.25, 0.25, -2.75]
    assert head.scores(rows).tolist() == [-2.25, -0.25, 2.75]
    assert head.z_scores(rows).tolist() == [-0.75, 0.25, 1.75]


def test_what_a_head_says_of_itself(write_head, identity):
    path, _ = write_head([48, 256, 64, 1], 3, mixing=MIXING)
    head = EnergyHead.open(str(path))
    assert (head.dim, head.dims, head.members) == (48, [48, 256, 64, 1], 3)
    assert head.identity == identity()
    assert head.score_scale == (-0.75, 2.0)
    assert head.mixing == MIXING
    assert head.metadata["training"] == {"seeds": [0]}
    assert head.path == str(path)
    assert "48, 256, 64, 1" in repr(head)
    assert EnergyHead.open(path.as_uri()).dims == head.dims
    assert EnergyHead.open(write_head()[0]).mixing is None
    assert EnergyHead.open(write_head(a_later_key={"x": 1})[0]).metadata["a_later_key"] == {"x": 1}


def test_a_head_for_a_different_encoder_is_refused(
    write_head, write_cache, identity, rows, tmp_path
):
    head = EnergyHead.open(write_head()[0])
    head.require_identity(identity(), "the encoder")
    with pytest.raises(
        IdentityMismatchError, match=r"than the encoder; different: dtype \(float32"
    ) as e:
        head.require_identity(identity(dtype="bfloat16"), "the encoder")
    assert "template" not in str(e.value)
    assert "hint: " in str(e.value)
    with pytest.raises(IdentityMismatchError, match="unknown"):
        head.require_identity(None, "a cache of other software")
    path = write_cache(tmp_path / "c.parquet", ["a", "b"], rows(2, 48), template="x {state}")
    cache = EmbeddingCache.open(path)
    with pytest.raises(IdentityMismatchError, match=r"c\.parquet; different: template"):
        head.require_identity(cache.identity, cache.path)


def test_rows_that_it_cannot_take(write_head, rows):
    head = EnergyHead.open(write_head()[0])
    good = rows(6, 48)
    with pytest.raises(ArgumentError, match="takes rows of 48 values, these have 47"):
        head.energies(rows(6, 47))
    for other in (good[:, ::-1], np.asfortranarray(good), good[::2]):
        with pytest.raises(ArgumentError, match="contiguous"):
            head.scores(other)
    for value in (np.nan, np.inf, -np.inf):
        bad = good.copy()
        bad[4, 7] = value
        with pytest.raises(ArgumentError, match=r"row 4: value .* in column 7"):
            head.z_scores(bad)
    for other in (good.astype(np.float64), good[0], good.tolist()):
        with pytest.raises(TypeError):
            head.energies(other)
    read_only = good.copy()
    read_only.flags.writeable = False
    assert np.array_equal(head.energies(read_only), head.energies(good))


def test_an_energy_beyond_float32_is_no_number(write_head):
    weight = {"member.0.layer.0.weight": torch.full((1, 4), 1e38)}
    head = EnergyHead.open(write_head([4, 1], tensors=weight)[0])
    some = np.zeros((3, 4), np.float32)
    some[1] = 10
    with pytest.raises(ArgumentError, match="row 1: its energy is beyond float32"):
        head.energies(some)
    scale = {"mean": 0.0, "deviation": 1e-300}
    head = EnergyHead.open(write_head([4, 1], score_scale=scale)[0])
    with pytest.raises(ArgumentError, match=r"row 0: .* beyond float32"):
        head.z_scores(some)


FIRST = "member.0.layer.0.weight"
NAN = torch.ones(40, 48)
NAN[3, 5] = torch.nan
OTHER_SIGN = "energy: higher is better; score = energy"


def architecture(dims=(48, 40, 24, 1), members=1, activation="silu"):
    return {"architecture": {"dims": dims, "activation": activation, "members": members}}


def scale(mean, deviation):
    return {"score_scale": {"mean": mean, "deviation": deviation}}


def mixing(weight=0.5, **policy):
    return {"mixing": {"weight": weight, "policy": MIXING["policy"] | policy}}


def metadata(**texts):
    return {"metadata": texts}


def tensor(value, name=FIRST):
    return {"tensors": {name: value}}


BAD = {
    "no metadata": (metadata(format=None, version=None, head=None), "no metadata"),
    "another format": (metadata(format="pt"), 'not a head file: metadata "format" is "pt"'),
    "no version": (metadata(version=None), 'metadata "version": is missing'),
    "later version": (metadata(version="2"), "version 2, this build reads up to 1"),
    "no number": (metadata(version="one"), '"version": is "one"'),
    "no head": (metadata(head=None), 'metadata "head": is missing'),
    "no JSON": (metadata(head="{"), 'metadata "head": EOF'),
    "no object": (metadata(head="[1]"), "expected a JSON object"),
    "no identity": ({"identity": None}, '"identity": is missing'),
    "half an identity": ({"identity": {"weights": "w"}}, '"identity": not an encoder identity'),
    "no architecture": ({"architecture": None}, '"architecture": is missing'),
    "one dim": (architecture([48]), "dims are [48], expected"),
    "two outputs": (architecture([48, 2]), "dims are [48, 2], expected"),
    "no dim": (architecture([0, 1]), "dims are [0, 1], expected"),
    "negative": (architecture([-1, 1]), "-1"),
    "huge dims": (architecture([2**62, 2**62, 1]), "no place in a head of dims"),
    "huge, and fitting": (
        architecture([2**62, 40, 24, 1]),
        "shape [40, 48], expected [40, 46116860",
    ),
    "many members": (architecture(members=2**63), 'tensor "member.1.layer.0.weight": is missing'),
    "no members": (architecture(members=0), "members is 0"),
    "activation": (architecture(activation="relu"), 'activation is "relu", expected "silu"'),
    "no sign": ({"sign": None}, '"sign": is missing'),
    "the other sign": ({"sign": OTHER_SIGN}, '"sign": is "energy: higher is better'),
    "no scale": ({"score_scale": None}, '"score_scale": is missing'),
    "deviation 0": (scale(0, 0), "deviation above 0"),
    "deviation below 0": (scale(0, -1), "deviation above 0"),
    "NaN in JSON": (scale(float("nan"), 1), 'metadata "head": '),
    "weight 2": (mixing(2.0), "weight is 2, expected 0 to 1"),
    "weight below 0": (mixing(-0.1), "expected 0 to 1"),
    "no policy": ({"mixing": {"weight": 0.5}}, '"mixing": missing field `policy`'),
    "policy's deviation": (mixing(deviation=0), "mixing.policy"),
    "exponent": (mixing(depth_exponent=-1), "depth_exponent"),
    "NaN weights": (tensor(NAN), f'"{FIRST}": holds NaN'),
    "infinite bias": (tensor(torch.tensor([torch.inf]), "member.0.layer.2.bias"), "infinite"),
    "missing tensor": (tensor(None), f'"{FIRST}": is missing'),
    "extra tensor": (tensor(torch.zeros(1), "optimizer"), '"optimizer": has no place'),
    "extra layer": (tensor(torch.zeros(1), "member.0.layer.3.bias"), "has no place"),
    "extra member": (tensor(torch.zeros(40), "member.1.layer.0.bias"), "has no place"),
    "other spelling": (
        {"tensors": {FIRST: None, "member.00.layer.0.weight": torch.zeros(40, 48)}},
        f'"{FIRST}": is missing',
    ),
    "transposed": (tensor(torch.zeros(48, 40)), "[48, 40], expected [40, 48]"),
    "flat": (tensor(torch.zeros(48 * 40)), "has the shape [1920]"),
    "half precision": (tensor(torch.zeros(40, 48).half()), "is F16, expected F32"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_a_head_is_refused_with_the_key_or_tensor(write_head, kind):
    changes, message = BAD[kind]
    path, _ = write_head(**changes)
    with pytest.raises(HeadFormatError) as error:
        EnergyHead.open(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_a_file_that_is_cut_off_or_something_else_is_refused(write_head, tmp_path):
    path, _ = write_head()
    whole = path.read_bytes()
    broken = tmp_path / "broken.safetensors"
    for content in (
        *(whole[:length] for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1)),
        whole + b"\0",
        b"PAR1" + whole,
        struct.pack("<Q", 2**63) + whole[8:],
        struct.pack("<Q", len(whole)) + whole[8:],
        whole.replace(b'"data_offsets":[', b'"data_offsets":[9', 1),
    ):
        broken.write_bytes(content)
        with pytest.raises(HeadFormatError, match="not a safetensors file, cut off or damaged"):
            EnergyHead.open(broken)


def test_a_missing_file_and_what_cannot_be_a_path(tmp_path):
    with pytest.raises(HeadNotFoundError, match=r"none\.safetensors: there is no such head file"):
        EnergyHead.open(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        EnergyHead.open(tmp_path / "none.safetensors")
    for wrong in (tmp_path, "ftp://host/head.safetensors", ""):
        with pytest.raises(EbmEncodeError):
            EnergyHead.open(wrong)
