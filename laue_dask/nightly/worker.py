"""The process that runs scans for a night, one after another on the same workers.

It takes one job a line on its standard input and answers with one line each. It is a process of its own so that a scan
that takes it down, by a crash or for want of memory, takes down nothing else; and it lives for several scans, because
importing PyTorch and starting workers takes longer than a small scan does. It ends, with all its workers, when its
input does: when the night is over, or was killed.
"""

import json
import logging
import os
import queue
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import psutil
from rich.console import Console

from laue_dask.compute import cluster
from laue_dask.compute.cluster import Workers
from laue_dask.config import Config, validate
from laue_dask.errors import BusyError, InputError, LaueDaskError, SpaceError
from laue_dask.io.output_paths import disk_full_error, is_disk_full
from laue_dask.pipeline import single_scan
from laue_dask.pipeline.stages.extraction import extractor_of
from laue_dask.report.thumbnails import write_thumbnails
from laue_dask.runtime.bars import RichProgress


class _KeptWorkers:
    """Workers that are kept from scan to scan, as long as the scans ask for the same."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._of: object = None
        self._workers: Workers | None = None

    def of(self, config: Config) -> Workers:
        if self._workers is None or config.workers != self._of:
            self._stack.close()
            self._workers = self._stack.enter_context(cluster.start(config.workers))
            self._of = config.workers
        return self._workers


def main() -> None:
    """Run the jobs that come in until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what others print is no answer
    jobs: queue.Queue[str] = queue.Queue()
    busy = threading.Event()
    threading.Thread(target=_serve, args=(jobs, busy), daemon=True).start()
    with ExitStack() as stack:
        kept = _KeptWorkers(stack)
        while line := jobs.get():
            answer = _answer(json.loads(line), kept)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
            busy.clear()


def _serve(jobs: "queue.Queue[str]", busy: threading.Event) -> None:
    for line in sys.stdin:
        busy.set()
        jobs.put(line)
    jobs.put("")
    if busy.is_set():  # the night itself was killed
        for child in psutil.Process().children(recursive=True):
            child.kill()
        shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)  # made for this process alone
        os._exit(1)


@contextmanager
def _logging_to(log: TextIO) -> Iterator[None]:
    """What a run has to say, such as where its frames belong, is in its log."""
    handler, logger = logging.StreamHandler(log), logging.getLogger("laue_dask")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _answer(job: dict[str, Any], kept: _KeptWorkers) -> dict[str, Any]:
    """What became of a job; never raises."""
    try:
        return _logged_answer(job, kept)
    except OSError as error:  # of the log
        if is_disk_full(error):
            return {"failed": "space", "reason": str(disk_full_error(error, Path(job["log"])))}
        return {"failed": "compute", "reason": f"{job['log']}: {error.strerror or error}"}


def _logged_answer(job: dict[str, Any], kept: _KeptWorkers) -> dict[str, Any]:
    with Path(job["log"]).open("w", encoding="utf-8") as log, _logging_to(log):
        try:
            config = validate(job["config"], "run")
            extractor_of(config.encoder, config.recipe)
        except LaueDaskError as error:
            return {"failed": "configuration", "reason": str(error)}
        try:
            answer = _run(job, config, kept, RichProgress(console=Console(file=log, width=120)))
        except SpaceError as error:
            answer = {"failed": "space", "reason": str(error)}
        except BusyError as error:
            answer = {"failed": "busy", "reason": str(error)}
        except InputError as error:
            answer = {"failed": "input", "reason": str(error)}
        except Exception as error:
            if is_disk_full(error):
                return {"failed": "space", "reason": str(disk_full_error(error, Path(job["out"])))}
            traceback.print_exc(file=log)
            reason = " ".join(str(error).split()) or type(error).__name__
            known = isinstance(error, LaueDaskError | OSError)
            answer = {"failed": "compute", "reason": reason if known else f"{type(error).__name__}: {reason}"}
        log.write(json.dumps(answer, ensure_ascii=False) + "\n")
        return {**answer, "memory": psutil.Process().memory_info().rss}


def _run(job: dict[str, Any], config: Config, kept: _KeptWorkers, progress: RichProgress) -> dict[str, Any]:
    folder = Path(job["out"])
    workers = kept.of(config)
    record = single_scan.run(
        job["source"], folder, config, command=job["command"], progress=progress, again=True, workers=workers
    ).as_json()
    names = ("n_patterns", "n_set_aside", "scan_shape", "k", "suggested_k", "m_pca", "warnings")
    facts = {name: record[name] for name in names}
    facts["grid"] = record["grid"].get("line", "")
    facts["seconds"] = round(sum(record["seconds"].values()), 1)
    facts["thumbnails"] = write_thumbnails(folder, Path(job["thumbnails"]), suggested=record["suggested_k"])
    return facts


if __name__ == "__main__":
    main()
