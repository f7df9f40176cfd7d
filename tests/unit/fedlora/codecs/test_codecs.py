"""Every codec: its shapes, its error, what it refuses; and numbers worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedlora.codecs.base import Codec, bits_per_value
from fedlora.codecs.int8 import Int8
from fedlora.codecs.nf4 import LEVELS, Nf4
from fedlora.codecs.spec import CodecName, CodecSpec
from fedlora.codecs.top_k import TopK
from fedlora.codecs.updates import create_codec
from fedlora.errors import FedLoraError

CODECS = [create_codec(CodecSpec(name=name)) for name in CodecName]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name.value)


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Matrices of any shape, with rows of very different size and zeros among them."""
    rows, width = draw(st.integers(1, 5)), draw(st.integers(1, 140))
    seed = draw(st.integers(0, 2**31))
    # Within f16's range, and down to where every codec meets its smallest numbers.
    sizes = draw(st.lists(st.floats(-42, 3), min_size=rows, max_size=rows))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    x = x * torch.rand(rows, width, generator=generator).round()
    return x * torch.tensor([10.0**s for s in sizes], dtype=torch.float32).unsqueeze(1)


def read_back(codec: Codec, x: Tensor) -> Tensor:
    return codec.decode(codec.encode(x), *x.shape)


@every_codec
@settings(deadline=None)
@given(x=matrices())
def test_no_value_is_further_off_than_the_codec_says(codec: Codec, x: Tensor):
    assert bool(((read_back(codec, x) - x).abs() <= codec.error_bound(x)).all())


@every_codec
def test_the_bound_is_not_idle(codec: Codec):
    # Some value comes within a tenth of it, so that a bound a digit too wide would be noticed.
    x = torch.randn(4, 4096, generator=torch.Generator().manual_seed(0))
    share = (read_back(codec, x) - x).abs() / codec.error_bound(x)
    assert float(share.max()) > 0.9


@every_codec
@settings(deadline=None)
@given(x=matrices())
def test_the_tensors_are_the_ones_foretold_and_an_encoder_makes_no_fault(codec: Codec, x: Tensor):
    encoded, foretold = codec.encode(x), codec.fields(*x.shape)
    assert encoded.keys() == foretold.keys()
    for name, field in foretold.items():
        assert tuple(encoded[name].shape) == field.shape
        assert encoded[name].dtype == field.dtype.torch_dtype
    assert codec.fault(encoded, *x.shape) == ""


@every_codec
@settings(deadline=None)
@given(x=matrices())
def test_what_was_read_is_written_the_same_again_within_the_bound(codec: Codec, x: Tensor):
    once = read_back(codec, x)
    assert bool(((read_back(codec, once) - once).abs() <= codec.error_bound(once)).all())
    assert once.dtype is torch.float32


@every_codec
def test_a_change_of_nothing_is_read_as_nothing(codec: Codec):
    assert torch.equal(read_back(codec, torch.zeros(3, 70)), torch.zeros(3, 70))


@every_codec
def test_the_largest_numbers_stay_finite_or_are_found_out(codec: Codec):
    most = torch.finfo(torch.float32).max
    encoded = codec.encode(torch.tensor([[most, -most, 1.0, 0.0]]))
    finite = all(bool(torch.isfinite(t).all()) for t in encoded.values() if t.is_floating_point())
    # Rounding carries float32's largest number over the edge of 16 bits; int8 keeps its scale.
    assert finite == (codec.name is CodecName.INT8)
    if finite:
        assert bool(torch.isfinite(codec.decode(encoded, 1, 4)).all())


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        (CodecName.BF16, 16),
        (CodecName.F16, 16),
        (CodecName.INT8, 8 + 32 / 640),
        (CodecName.NF4, 4 + 16 / 64),
        # A bit for each place, 16 for each of the five per cent that is kept.
        (CodecName.TOP_K, 1 + 0.05 * 16),
    ],
)
def test_the_bits_per_value_are_those_documented(name: CodecName, bits: float):
    assert bits_per_value(create_codec(CodecSpec(name=name)), 8, 640) == pytest.approx(bits)


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        # 8 significant digits: 1 + 1/128 is there, 1 + 1/256 is a tie and goes to the even one.
        (CodecName.BF16, 1 + 1 / 128, 1 + 1 / 128),
        (CodecName.BF16, 1 + 1 / 256, 1.0),
        (CodecName.F16, 1 + 1 / 256, 1 + 1 / 256),
        # f16's smallest number is 2^-24: half of it and less is nothing.
        (CodecName.F16, 2.0**-24, 2.0**-24),
        (CodecName.F16, 2.0**-26, 0.0),
    ],
)
def test_numbers_of_sixteen_bits_worked_by_hand(name: CodecName, value: float, read: float):
    assert float(read_back(create_codec(CodecSpec(name=name)), torch.tensor([[value]]))) == read


def test_int8_worked_by_hand():
    x = torch.tensor([[127.0, -64.0, 0.4, 0.6], [0.0, 0.0, -0.0, 0.0], [-2.54, 1.27, 0.02, 0.0]])
    encoded = Int8().encode(x)
    assert encoded["scales"].tolist() == pytest.approx([127, 0, 2.54])
    assert encoded["codes"].tolist() == [
        [255, 64, 128, 129],
        [128, 128, 128, 128],
        [1, 192, 129, 128],
    ]
    assert Int8().decode(encoded, 3, 4)[0].tolist() == pytest.approx([127, -64, 0, 1])


def test_int8_scales_each_row_by_itself():
    x = torch.tensor([[1000.0, 3.0], [0.001, 0.0005]])
    assert (read_back(Int8(), x)[1] - x[1]).abs().max() <= 0.001 / 254 * (1 + 1e-6)


def test_nf4_worked_by_hand():
    # One row of 65: a block of 64 and a block of one. Scales 2 and 0.5.
    x = torch.zeros(1, 65)
    x[0, :4] = torch.tensor([2.0, -2.0, 2 * 0.5626, -2 * 0.4])
    x[0, 64] = -0.5
    encoded = Nf4().encode(x)
    assert encoded["scales"].tolist() == [[2.0, 0.5]]
    # Levels 15 and 0, then 13 and 3, then zeros (level 7); alone in the last byte: level 0.
    assert encoded["codes"][0, :3].tolist() == [15 + 16 * 0, 13 + 16 * 3, 7 + 16 * 7]
    assert encoded["codes"][0, 32].item() == 0
    read = Nf4().decode(encoded, 1, 65)
    assert read[0, :4].tolist() == pytest.approx([2, -2, 2 * LEVELS[13], 2 * LEVELS[3]])
    assert read[0, 64].item() == -0.5


def test_the_levels_of_nf4_are_the_papers():
    # Quantiles of a normal distribution at equal steps, seven below zero and eight above, made to
    # end at one; the paper's last quantile is the mean of 1 - 1/30 and 1 - 1/32.
    offset = (1 - 1 / 30 + 1 - 1 / 32) / 2
    above = torch.special.ndtri(torch.linspace(0.5, offset, 9, dtype=torch.float64))[1:]
    below = torch.special.ndtri(torch.linspace(0.5, offset, 8, dtype=torch.float64))[1:]
    expected = torch.cat([-below.flip(0), torch.zeros(1), above]) / above[-1]
    assert torch.allclose(torch.tensor(LEVELS, dtype=torch.float64), expected, atol=1e-6)
    assert all(low < high for low, high in itertools.pairwise(LEVELS))


def test_top_k_worked_by_hand():
    codec = TopK(kept_share=0.25)
    x = torch.tensor([[0.1, -3.0, 0.2, 0.0, 2.0], [0.3, 0.0, -2.0, 0.0, 0.0]])
    encoded = codec.encode(x)
    # Three of ten; of the two of size 2 both are among them. Places 1, 4 and 7; the bits of the
    # second byte stand for places 8 and 9.
    assert encoded["places"].tolist() == [2 + 16 + 128, 0]
    assert encoded["values"].tolist() == [-3.0, 2.0, -2.0]
    assert codec.decode(encoded, 2, 5).tolist() == [[0, -3, 0, 0, 2], [0, 0, -2, 0, 0]]


def test_of_equal_values_top_k_keeps_the_first():
    encoded = TopK(kept_share=0.5).encode(torch.tensor([[1.0, -1.0, 1.0, 1.0]]))
    assert encoded["places"].tolist() == [3]
    assert encoded["values"].tolist() == [1.0, -1.0]


@settings(deadline=None)
@given(x=matrices(), share=st.floats(0.01, 1))
def test_top_k_loses_no_more_than_the_share_it_leaves_out(x: Tensor, share: float):
    codec = TopK(kept_share=share)
    kept = math.ceil(share * x.numel()) / x.numel()
    lost = (codec.decode(codec.encode(x), *x.shape) - x).double().square().sum()
    # Numbers too small for bf16 to keep its digits are lost beside the share.
    floor = x.numel() * 2.0**-266
    assert float(lost) <= (1 - kept + 2.0**-16) * float(x.double().square().sum()) + floor


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float):
    with pytest.raises(FedLoraError, match=r"codec.kept_share must lie in \(0, 1\]"):
        CodecSpec(name=CodecName.TOP_K, kept_share=share)


# --- what no encoder writes ------------------------------------------------------------------


def faulty(codec: Codec, field: str, index: tuple[int, ...], value: float) -> str:
    # The second row's first values are the largest.
    x = torch.tensor([[1.0] * 10, [3.0, 2.0, *[1.0] * 8]])
    encoded = codec.encode(x)
    encoded[field][index] = value
    return codec.fault(encoded, 2, 10)


def test_a_byte_that_is_no_code_is_found():
    assert faulty(Int8(), "codes", (1, 9), 0) == "a code is 0, expected 1 to 255"


@pytest.mark.parametrize(("codec", "index"), [(Int8(), (1,)), (Nf4(), (1, 0))])
def test_a_negative_scale_is_found(codec: Codec, index: tuple[int, ...]):
    assert faulty(codec, "scales", index, -1.0) == "a scale is -1.0, expected none below 0"


def test_places_that_do_not_fit_the_values_are_found():
    codec = TopK(kept_share=0.1)
    assert "1 places are named for 2 values" in faulty(codec, "places", (1,), 4)
    assert "10 places are named for 2 values" in faulty(codec, "places", (0,), 255)
    # Twenty values: the last four bits of the third byte stand for nothing.
    assert "beyond the tensor's 20 values" in faulty(codec, "places", (2,), 128)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_whatever_has_no_fault_is_read_as_finite_numbers(data: st.DataObject):
    codec = data.draw(st.sampled_from(CODECS))
    rows, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 70))
    encoded = {}
    for name, field in codec.fields(rows, width).items():
        dtype = field.dtype.torch_dtype
        count = math.prod(field.shape) * field.dtype.item_bytes
        raw = torch.tensor(
            list(data.draw(st.binary(min_size=count, max_size=count))), dtype=torch.uint8
        )
        encoded[name] = raw.view(dtype).reshape(field.shape)
        if dtype.is_floating_point:
            encoded[name] = encoded[name].nan_to_num(0.0)
    if codec.fault(encoded, rows, width) == "":
        read = codec.decode(encoded, rows, width)
        assert bool(torch.isfinite(read).all())
        assert read.shape == (rows, width)
