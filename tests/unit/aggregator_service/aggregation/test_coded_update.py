"""Coded updates among files: what an aggregator reads of them is what their workers meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.builders import MODULES, contribution, write_update
from support.codecs import read_update

from aggregator_service.aggregation.adapter_file import AdapterFile, StoredAdapter
from aggregator_service.aggregation.coded_update import check_codes
from aggregator_service.aggregation.cohort_files import CohortFiles
from aggregator_service.aggregation.contribution import Coding, Contribution
from aggregator_service.aggregation.slicing import slice_adapter
from aggregator_service.aggregation.stale_updates import Discount, LateContribution, cohort_of
from fedlora.codecs.base import Codec
from fedlora.codecs.spec import CodecName, CodecSpec
from fedlora.codecs.updates import coded_update, create_codec
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import TensorManifest

CODECS = [create_codec(CodecSpec(name=name)) for name in CodecName]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.name.value)
SAVED = {"classifier.weight": (3, 7), "classifier.bias": (3,)}


def scaling(rank: int) -> float:
    return 8.0 / rank


def pair(
    folder: Path, codec: Codec, base: Path, *, seed: int, rank: int = 4
) -> tuple[Contribution, Contribution]:
    """One update in a codec, and the same as the plain adapter that a server should read."""
    given_file = folder / f"given-{seed}"
    slice_adapter(base, given_file, rank=rank, scaling=scaling)
    given = load_file(given_file)
    trained = load_file(
        write_update(
            folder / f"trained-{seed}", seed=seed, rank=rank, origin=given_file, saved=SAVED
        )
    )
    coded = coded_update(codec, trained, given, {})
    save_file(dict(coded.tensors), folder / f"coded-{seed}")
    save_file(read_update(codec, coded.tensors, given), folder / f"plain-{seed}")
    worker = {"worker": f"w-{seed}", "weight": 1.0 + seed}
    plain = contribution(folder / f"plain-{seed}", scaling=1.0, **worker)
    plain = replace(plain, scaling=scaling, given_rank=rank)
    coding = Coding(codec=codec, base=StoredAdapter(path=base, scaling=scaling))
    return replace(plain, path=folder / f"coded-{seed}", coding=coding), plain


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_update(tmp_path / "base", seed=9, saved=SAVED)


@every_codec
@pytest.mark.parametrize("rank", [4, 2], ids=lambda r: f"rank {r} of 4")
def test_a_coded_update_is_the_adapter_that_it_says(
    tmp_path: Path, base: Path, codec: Codec, rank: int
):
    coded, plain = pair(tmp_path, codec, base, seed=1, rank=rank)
    with coded.open() as one, plain.open() as other:
        assert one.shapes == other.shapes
        assert (one.modules, one.saved) == (other.modules, other.saved)
        assert one.dtype() == other.dtype() == "F32"
        for module in MODULES:
            assert one.rank(module) == rank
            assert one.is_narrow(module)
        for key in one.shapes:
            assert torch.equal(one.raw(key), other.raw(key))


@every_codec
def test_a_worker_of_a_higher_rank_than_the_version_has_is_read_as_well(
    tmp_path: Path, base: Path, codec: Codec
):
    coded, plain = pair(tmp_path, codec, base, seed=1, rank=6)
    with CohortFiles([coded]) as one, CohortFiles([plain]) as other:
        for module in one.modules:
            (f,), (g,) = one.factors(module), other.factors(module)
            assert torch.equal(f.a_RK, g.a_RK)
            assert torch.equal(f.b_DR, g.b_DR)


@every_codec
@pytest.mark.parametrize("rank", [4, 2], ids=lambda r: f"rank {r} of 4")
def test_a_coded_update_has_moved_as_far_as_the_adapter_that_it_says(
    tmp_path: Path, base: Path, codec: Codec, rank: int
):
    norms = []
    for update in pair(tmp_path, codec, base, seed=1, rank=rank):
        with AdapterFile(base, scaling, "base") as start, CohortFiles([update], start=start) as one:
            norms.append(one.change_norms())
    assert norms[0] == norms[1]
    assert norms[0][0] > 0


@every_codec
@pytest.mark.parametrize("in_products", [True, False])
def test_a_late_update_is_the_change_of_the_version_it_began_from(
    tmp_path: Path, base: Path, codec: Codec, in_products: bool
):
    now = write_update(tmp_path / "now", seed=10, saved=SAVED)
    before, began = (StoredAdapter(path=p, scaling=scaling) for p in (now, base))
    found = []
    for member in pair(tmp_path, codec, base, seed=1):
        late = LateContribution(contribution=member, staleness=1, base=began)
        with cohort_of(
            [late],
            discount=Discount(),
            before=before,
            in_products=in_products,
            temporary=lambda: tmp_path / "rebased",
        ) as members:
            assert all(m.coding is None for m in members)
            found.append([load_file(m.path) for m in members])
    coded, plain = found
    for one, other in zip(coded, plain, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


# --- at the door -----------------------------------------------------------------------------


def plain_manifest(base: Path) -> TensorManifest:
    return TensorManifest.of(load_file(base))


@every_codec
def test_what_an_encoder_has_written_is_let_in(tmp_path: Path, base: Path, codec: Codec):
    coded, _ = pair(tmp_path, codec, base, seed=1)
    check_codes(coded.path, codec=codec, plain=plain_manifest(base), owner="w-1")


@pytest.mark.parametrize(
    ("name", "field", "value", "fault"),
    [
        (CodecName.INT8, "codes", 0, "a code is 0"),
        (CodecName.INT8, "scales", -1.0, "a scale is -1.0"),
        (CodecName.NF4, "scales", -1.0, "a scale is -1.0"),
        (CodecName.TOP_K, "places", 0xFF, "places are named for"),
    ],
)
def test_what_no_encoder_writes_is_refused_by_name(
    tmp_path: Path, base: Path, name: CodecName, field: str, value: float, fault: str
):
    codec = create_codec(CodecSpec(name=name))
    coded, _ = pair(tmp_path, codec, base, seed=1)
    tensors = load_file(coded.path)
    # The last tensor of the adapter: all of them are looked at.
    last = plain_manifest(base).tensors[-1].name
    tensors[f"{last}.{field}"].view(-1)[0] = value
    save_file(tensors, coded.path)
    with pytest.raises(FedLoraError, match=fault) as error:
        check_codes(coded.path, codec=codec, plain=plain_manifest(base), owner="w-1")
    assert error.value.reason is Reason.INVALID_PAYLOAD
    assert last in str(error.value)


def test_both_files_of_a_coded_update_are_closed(tmp_path: Path, base: Path):
    coded, _ = pair(tmp_path, CODECS[0], base, seed=1)
    with coded.open() as file:
        key = next(iter(file.shapes))
    for gone in (file, AdapterFile(base, 1.0, "closed")):
        gone.close()
        with pytest.raises(Exception, match="closed"):
            gone.raw(key)
