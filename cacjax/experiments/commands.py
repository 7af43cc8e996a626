"""The commands that an experiment runs, each shown first, so that it can be run by hand; and the trainings of its networks."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple


class Network(NamedTuple):
    """A training: a file of configs/ with its words, what is set in it, and the networks that its stages need, {stage: name}.

    sized: whether the words of the experiment's size go before its own. {scans} in a setting stands for the folder of the held-out scans.
    Without a config nothing is trained: it is the network that it needs as "source". scoring: what `score` is told, beside.
    """

    config: str = ""
    words: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    needs: dict[str, str] = {}  # noqa: RUF012
    scoring: tuple[str, ...] = ()
    sized: bool = True


class Size(NamedTuple):
    """How large an experiment is: words of its configs, the grid of its held-out scans (voxels; mm), how many scans or pairs of them."""

    words: tuple[str, ...]
    shape: tuple[int, int, int]
    scans: int
    spacing_mm: tuple[float, float, float]


def train(networks, size, folder, seed) -> None:
    """Train every network of one seed in FOLDER/networks/NAME, each after those that it needs. size: has `words` of the configs."""
    trained, left = set(), {name: network for name, network in networks.items() if network.config}
    while left:
        ready = [name for name, network in left.items() if trained >= set(network.needs.values())]
        commands = [training(left.pop(name), size, folder / "networks", name, seed) for name in ready]
        run(f"train, seed {seed}: {', '.join(ready)}", commands, folder / "side_by_side.log")
        trained |= set(ready)


def training(network, size, root, name, seed) -> list[str]:
    """The words after `python -m` that train a network."""
    variant = ",".join((*(size.words if network.sized else ()), *network.words))
    own = [setting.format(scans=root.parent.parent / "test") for setting in network.settings]
    settings = [f"seed={seed}", *own, *(f"stages.{stage}.workdir={root / needed}" for stage, needed in network.needs.items())]
    config = f"{network.config}:{variant}" if variant else network.config
    return ["cacjax.train", "--config", config, "--workdir", str(root / name), *(f"--config.{setting}" for setting in settings)]


def run(title, commands, log, *, allowed=(0,)) -> None:
    """Run `python -m ...` commands, shown first; on CPU two at a time, all but the first into `log`. Ends the program on failure: an exit
    code that is not `allowed`, such as 1 where scans may be refused."""
    print(f"\n=== {title}", *(f"$ python -m {' '.join(command)}" for command in commands), sep="\n", flush=True)
    began, spent = time.perf_counter(), cpu_seconds()
    if len(commands) > 1 and os.environ.get("JAX_PLATFORMS") == "cpu":
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"(side by side; {log} has what all but the first of them say)", flush=True)
        with log.open("a") as file, ThreadPoolExecutor(2) as pool:
            codes = list(pool.map(call, commands, [None] + [file] * (len(commands) - 1)))
    else:
        codes = [call(command, None) for command in commands]
    print(f"=== {title}: {time.perf_counter() - began:.0f} s, {cpu_seconds() - spent:.0f} s of CPU", flush=True)
    if failed := [code for code in codes if code not in allowed]:
        sys.exit(f"error: {title}: a command above ended with exit code {max(failed, key=abs)}")


def cpu_seconds() -> float:
    """CPU time of all commands that have ended so far."""
    return os.times().children_user + os.times().children_system


def call(command, output) -> int:
    """Exit code of `python -m command`; what it prints goes to `output`, None: the terminal."""
    return subprocess.run([sys.executable, "-m", *command], stdout=output, stderr=output).returncode
