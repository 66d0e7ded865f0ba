"""Tell somebody how a night went; what goes wrong here is a line in the log and no more."""

import json
import subprocess
import urllib.request
from collections.abc import Mapping
from typing import Any

from laue_dask.nightly.config import NotifyConfig


def notify(config: NotifyConfig, summary: Mapping[str, Any]) -> list[str]:
    """Post the summary to the webhook and give it to the command; what went wrong, one line each."""
    if config.when == "problems" and summary["exit_code"] == 0:
        return []
    content = json.dumps(summary).encode()
    problems = []
    if config.webhook is not None:
        request = urllib.request.Request(  # noqa: S310  the configuration allows http and https alone
            config.webhook, data=content, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=config.timeout_seconds):  # noqa: S310
                pass
        except (OSError, ValueError) as error:
            problems.append(f"webhook: {' '.join(str(error).split())}")
    if config.command:
        try:
            done = subprocess.run(  # noqa: S603  the command is the owner's own
                config.command, input=content, capture_output=True, timeout=config.timeout_seconds, check=False
            )
            if done.returncode:
                problems.append(f"{config.command[0]}: exit code {done.returncode}")
        except (OSError, subprocess.SubprocessError) as error:
            problems.append(f"{config.command[0]}: {' '.join(str(error).split())}")
    return problems
