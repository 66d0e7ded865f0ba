"""scripts/benchmark_finetuning.py: what it promises."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark_finetuning.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))  # it takes its scans from the encoder's benchmark
        spec = importlib.util.spec_from_file_location("benchmark_finetuning", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    sys.modules.pop("benchmark_encoder", None)


@pytest.mark.parametrize(
    ("kind", "before", "after", "broken"),
    [
        ("messy", 0.90, 0.99, False),
        ("messy", 0.90, 0.905, True),
        ("messy_twins", 0.70, 0.69, True),
        ("twins", 1.0, 1.0, False),
        ("twins", 1.0, 0.995, False),
        ("fine_twins", 0.97, 0.95, True),
    ],
)
def test_messy_scans_gain_and_no_other_loses(script, kind, before, after, broken):
    line = script.broken_promise(kind, before, after)
    assert bool(line) == broken
    assert not line or line.startswith(f"{kind}: interior ARI {before:.3f} → {after:.3f}")


def test_the_table_has_the_means_of_the_seeds(script):
    figures = [
        {"before": dict.fromkeys(script.METRICS, 0.5), "after": dict.fromkeys(script.METRICS, 0.6)},
        {"before": dict.fromkeys(script.METRICS, 0.7), "after": dict.fromkeys(script.METRICS, 1.0)},
    ]
    assert script._cells(figures) == " | ".join(["0.600 → 0.800"] * len(script.METRICS))
