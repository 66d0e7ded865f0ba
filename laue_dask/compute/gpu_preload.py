"""A GPU worker takes one GPU for its own and loads what encoding needs, before it takes tasks.

Dask calls `dask_setup` in each worker process that was started with ``--preload laue_dask.compute.gpu_preload``.
"""

import asyncio
import os

from distributed import Worker


async def dask_setup(worker: Worker) -> None:
    """Give the worker its GPU, then load PyTorch and the shipped weights beside the event loop, which must not wait."""
    os.environ["CUDA_VISIBLE_DEVICES"] = own_device(str(worker.name), os.environ.get("CUDA_VISIBLE_DEVICES"))
    await asyncio.to_thread(_load)


def own_device(name: str, given: str | None) -> str:
    """Return the device of the n-th worker of a job.

    Parameters
    ----------
    name
        Of the worker, as `gpu-7-2`: the third worker of the job `gpu-7`; `gpu-7` is the only one.
    given
        The job's own `CUDA_VISIBLE_DEVICES`: indices or UUIDs, empty for none; None where the batch system sets none.
    """
    parts = name.split("-")
    place = int(parts[2]) if len(parts) > 2 else 0
    if given is None:
        return str(place)
    devices = [device for device in given.split(",") if device.strip()]
    return devices[place].strip() if place < len(devices) else ""


def _load() -> None:
    from laue_dask.features.inference import load_default

    load_default()
