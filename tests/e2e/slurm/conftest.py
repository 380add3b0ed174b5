"""A SLURM for the tests of this folder, if there can be one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import NoCluster, cluster  # type: ignore[import-not-found]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Its slurm.conf, which SLURM_CONF names meanwhile."""
    pytest.importorskip("submitit")
    try:
        with cluster(tmp_path_factory.mktemp("slurm")) as conf, pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(conf))
            for name in [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]:
                patch.delenv(name)
            yield conf
    except NoCluster as reason:
        pytest.skip(f"no SLURM: {reason}")
