"""A short run of `scripts/fuzz.py`: nothing that is read ends in a traceback, hangs or fills the memory."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import fuzz


def test_damaged_inputs_are_read_or_refused_in_one_line(tmp_path):
    everything = fuzz.targets(tmp_path)
    for name, target in everything.items():
        for number in range(target.share // 2 + 1):
            fault = fuzz.attempt(name, target, number, 20, tmp_path)
            assert not fault, f"{name} {number}: {fault}"


def test_inputs_are_changed_and_the_same_for_a_seed():
    content = bytes(range(200))
    made = [fuzz.mutated(content, random.Random(i), [content], text=False) for i in range(50)]  # noqa: S311
    assert made == [fuzz.mutated(content, random.Random(i), [content], text=False) for i in range(50)]  # noqa: S311
    assert sum(one != content for one in made) > 45
