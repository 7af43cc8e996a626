"""What a running training shows and writes: progress with rate and ETA, metrics as JSON lines and TensorBoard, learning curves."""

import collections
import json
import pathlib
import signal
import sys
import threading
import time

import jax
import numpy as np
import tqdm

from cacjax.files.atomic import replace


class Interrupt:
    """Within this context the first Ctrl-C or SIGTERM only sets `asked`, so that a step ends and is saved; the second one stops."""

    def __enter__(self):
        self.asked = False
        self._old = {}
        if _main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this step, once it is saved (again: at once)", file=sys.stderr, flush=True)

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class Progress:
    """Collects metrics on the device and fetches them every `every` steps: one record per step in metrics.jsonl. check: of a Task."""

    def __init__(self, workdir, *, name: str, start: int, stop: int, every: int, check=None):
        self._folder = pathlib.Path(workdir)
        self._name, self._start, self._stop, self._every, self._check = name, start, stop, every, check
        self._pending = []
        self._waited = 0.0
        self._since = time.perf_counter()
        self._means = collections.defaultdict(list)

    def __enter__(self):
        self._writes = jax.process_index() == 0
        if self._writes:
            _forget_after(self._folder / "metrics.jsonl", self._start)
            self._file = open(self._folder / "metrics.jsonl", "a")
            import tensorboardX  # brings in torch where that is installed: only a training pays for it

            self._board = tensorboardX.SummaryWriter(str(self._folder), purge_step=self._start + 1)
        terminal = sys.stderr.isatty()
        bar = "{desc} {percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}<{remaining}, {rate_fmt}] {postfix}"
        self._bar = tqdm.tqdm(total=self._stop, initial=self._start, desc=self._name, unit="step", bar_format=bar, disable=not terminal)
        self._quiet, self._began = not terminal, time.perf_counter()
        return self

    def __exit__(self, kind, *_):
        self._bar.close()
        if not self._writes:
            return
        if kind is None or kind is KeyboardInterrupt:
            draw_curves(self._folder)
        self._file.close()
        self._board.close()

    def waiting(self, batches):
        """The next batch; the time that it took counts as waiting for data."""
        began = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - began
        return batch

    def step(self, number: int, metrics) -> None:
        """Note a step's metrics (device arrays); writes them when `every` steps have come together."""
        self._pending.append((number, metrics))
        if number % self._every == 0:
            self.flush()

    def flush(self) -> None:
        """Write what is pending; raise FloatingPointError at the first step whose metrics are not finite or fail the task's check."""
        if not self._pending:
            return
        records = [(n, {k: float(v) for k, v in m.items()}) for n, m in jax.device_get(self._pending)]
        self._pending = []
        for number, metrics in records:
            wrong = ", ".join(f"{k} = {v}" for k, v in metrics.items() if not np.isfinite(v))
            if not wrong and self._check:
                wrong = self._check(metrics)
            if wrong:
                raise FloatingPointError(f"step {number}: {wrong}; the last good checkpoint stays in {self._folder}")
        self._write(records)

    def _write(self, records) -> None:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        rate = {"steps_per_s": len(records) / seconds, "data_wait_pct": 100 * self._waited / seconds}
        self._waited = 0.0
        last, means = records[-1][0], {name: float(np.mean([m[name] for _, m in records if name in m])) for name in _names(records)}
        if self._writes:
            for number, metrics in records:
                self._file.write(json.dumps({"step": number, **metrics, **rate}) + "\n")
            self._file.flush()
            for name, value in (means | rate).items():
                self._board.add_scalar(name, value, last)
        self._show(last, means | {"data_wait_pct": rate["data_wait_pct"]})

    def _show(self, step: int, values: dict) -> None:
        grouped = {group: [values[name] for name in names] for group, names in _grouped(values).items()}
        spread = lambda found: f" ({min(found):.3g} to {max(found):.3g})" if len(found) > 1 else ""  # noqa: E731
        text = "  ".join(f"{group} {np.mean(found):.3g}{spread(found)}" for group, found in grouped.items())
        self._bar.n = step
        self._bar.set_postfix_str(text)
        if self._quiet:
            spent = time.perf_counter() - self._began
            rate = (step - self._start) / spent
            left = (self._stop - step) / rate
            print(f"{self._name} step {step}/{self._stop}  {rate:.2f} steps/s  ETA {left:.0f} s  {text}", flush=True)


def _names(records) -> list[str]:
    """Every metric in (step, metrics) records, in order; those of a validation are not in all."""
    return list(dict.fromkeys(name for _, metrics in records for name in metrics))


def _grouped(names) -> dict:
    """{what is measured: its metrics}: those named GROUP/PART, one of each member of an ensemble, belong together."""
    groups = collections.defaultdict(list)
    for name in names:
        groups[name.split("/")[0]].append(name)
    return groups


def _forget_after(path: pathlib.Path, step: int) -> None:
    """Drop the records of steps that a resumed run will do again."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    replace(path, lambda aside: aside.write_text("".join(line + "\n" for line in lines)))


def _step_of(line: str) -> float:
    """The step of a record; a line that an interruption cut short counts as never written."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")


def draw_curves(folder: pathlib.Path) -> None:
    """Draw metrics.jsonl as curves.png: one panel per metric, every step faint and a running mean strong; of a validation, whose metrics
    begin with "validation", every value and the best so far. Metrics of several members share a panel."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = [name for name in _names([(0, r) for r in records]) if name not in ("step", "steps_per_s", "data_wait_pct")]
    if not names:
        return
    groups = _grouped(names)
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(groups) :]:
        axis.set_axis_off()
    steps = np.array([r["step"] for r in records])
    for axis, (group, members) in zip(axes.flat, groups.items()):
        for number, name in enumerate(members):
            known = np.array([name in r for r in records])
            _draw(axis, steps[known], np.array([r[name] for r in records if name in r]), name, number)
        axis.set(title=group.replace("_", " "), xlabel="step")
        if len(members) > 1 or group.startswith("validation"):
            axis.legend(fontsize=8)
    replace(folder / "curves.png", lambda aside: figure.savefig(aside, dpi=100))
    plt.close(figure)


def _draw(axis, at, values, name, number):
    """One metric in its panel: `number` tells the members of an ensemble apart."""
    colour, member = f"C{number}", name.partition("/")[2].replace("_", " ")
    if name.startswith("validation"):
        best, alone = values.argmax(), not member
        axis.plot(at, values, "o-", ms=3, color=colour)
        found = f"best: {values[best]:.3g} at step {at[best]}"
        axis.plot(at[best], values[best], "*", ms=12, color="C1" if alone else colour, label=found if alone else f"{member}, {found}")
        return
    width = max(1, len(values) // 50)
    axis.plot(at, values, alpha=0.25 if not member else 0.1, color=colour)
    axis.plot(at[width - 1 :], np.convolve(values, np.ones(width) / width, mode="valid"), color=colour, label=member or None)
