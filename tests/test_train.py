"""The command line of training: a mistake is one line that names what there is."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("uda.py:tiny --config.optimizer.rate=1", "no such key in the config, 'optimizer' of --config.optimizer.rate=1: there are adv"),
        ("uda.py:tiny --config.critics.clip=1", """'critics' of --config.critics.clip=1: did you mean "critic"? there are"""),
        ("uda.py:tiny --config.critic.clips=1", """'clips' of --config.critic.clips=1: did you mean "clip"? there are"""),
        ("ensemble.py:nonsense", "unknown variant 'nonsense': expected small, tiny or test"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path, words, told):
    command = [sys.executable, "-m", "cacjax.train", "--workdir", str(tmp_path), "--config", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 1 and lines[-1].startswith("error: ") and told in lines[-1]
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
