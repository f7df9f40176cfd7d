"""Versions as rounds begin from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.builders import write_update
from support.runs import run_spec

from aggregator_service.aggregation.adapter_file import AdapterFile
from aggregator_service.rounds.state import AdapterRecord
from aggregator_service.store.blobs import BlobStore
from aggregator_service.stored_versions import StoredVersions


@pytest.mark.parametrize("ranks", [(4, 8), (8, 4)])
def test_runs_with_one_first_version_begin_at_ranks_of_their_own(
    ranks: tuple[int, int], tmp_path: Path
) -> None:
    blobs = BlobStore(tmp_path / "state")
    digest = blobs.adopt(write_update(blobs.new_temporary(), seed=1, rank=2))
    first = AdapterRecord(version=0, round=0, digest=digest, total_bytes=1, rank=2)
    versions, spec = StoredVersions(blobs), run_spec()
    for r in ranks:
        begun = versions.begun(replace(spec, adapter=replace(spec.adapter, r=r)), first)
        with AdapterFile(begun.path, begun.scaling, "the first version") as file:
            assert {file.rank(module) for module in file.modules} == {r}
