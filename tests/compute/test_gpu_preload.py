import asyncio
import os

import pytest

from laue_dask.compute import gpu_preload
from laue_dask.features import inference as encode


@pytest.mark.parametrize(
    ("name", "given", "own"),
    [
        ("gpu-0", "0,1,2,3", "0"),
        ("gpu-7-2", "0,1,2,3", "2"),
        ("gpu-7-1", "5,3", "3"),
        ("gpu-3-0", "GPU-8f1c, GPU-2b", "GPU-8f1c"),
        ("gpu-3-1", "GPU-8f1c, GPU-2b", "GPU-2b"),
        ("gpu-12-3", None, "3"),  # a batch system that sets nothing
        ("gpu-12", None, "0"),
        ("gpu-0", "", ""),  # one that gives none
        ("gpu-0-1", "0", ""),
    ],
)
def test_each_worker_of_a_job_has_a_gpu_of_its_own(name, given, own):
    assert gpu_preload.own_device(name, given) == own


def test_a_worker_has_its_gpu_and_the_weights_before_it_takes_a_task(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    encode.network_here.cache_clear()
    asyncio.run(gpu_preload.dask_setup(type("Worker", (), {"name": "gpu-0-1"})))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"
    assert encode.network_here.cache_info().currsize == 1
