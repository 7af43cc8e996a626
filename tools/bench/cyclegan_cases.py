"""Cases of calcium CycleGAN: the product's train step against PyTorch from the same weights, without pool and augmentation, its first
losses compared before it races; and its layers one by one.

A row of a layer has CPU seconds (of all threads, the least of the rounds), forward and with both gradients (`slope_`): ours, in the
form that the networks take; native, XLA's own convolution and gradients (None where these take more than twenty times as long); torch.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from cyclegan_torch import Learner
from race import Case, compiled, noted, take_turns
from run import cores
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from uda_cases import agree, finish, ready

from cacjax.models import conv, conv2d
from cacjax.models.unet import Normalisation
from cacjax.task import build
from cacjax.training.streams import example_batch, streams_of
from configs import cyclegan

WORKS = {"small": "step, small", "": "step, published"}
BATCH = 2  # slices that a layer is given: those of one kind
LAYERS = (  # form, size, channels in and out, sides of the input
    ("same", 7, 1, 64, 224),
    ("down", 3, 64, 128, 224),
    ("down", 3, 128, 256, 112),
    ("same", 3, 256, 256, 56),
    ("up", 3, 256, 128, 56),
    ("up", 3, 128, 64, 112),
    ("same", 7, 64, 1, 224),
    ("judge", 4, 64, 128, 112),
    ("judge", 4, 128, 256, 56),
    ("last judge", 4, 256, 512, 28),
    ("norm", 1, 64, 64, 224),
    ("same", 3, 1, 8, 112),
    ("down", 3, 8, 16, 112),
    ("down", 3, 16, 32, 56),
    ("same", 3, 32, 32, 28),
    ("up", 3, 32, 16, 28),
    ("up", 3, 32, 8, 56),
    ("same", 3, 16, 1, 112),
    ("judge", 4, 1, 16, 112),
    ("norm", 1, 8, 8, 112),
)
PADS = {"judge": 1, "last judge": 1, "up": 1, "norm": 0}  # zeros around; others are reflected by half their size


def cases(options):
    """Generator of the cases whose work contains the text `options.only`: layers, the size that trains on a CPU, the published one."""
    torch.set_num_threads(cores())
    layers = (Layer(*settings) for settings in LAYERS)
    yield from (layer for layer in layers if options.only in " ".join(layer.key.values()))
    yield from (step(options.device, variant, work) for variant, work in WORKS.items() if options.only in work)


def step(device, variant, work) -> Case:
    """One train step."""
    config, given = begun(variant)
    state, batch, _ = given
    program, took = compiled(build(config).train_step, *given, training=True)
    params = {name: jax.device_get(state.nets[name].params) for name in ("remove", "insert", "free", "calcified")}
    theirs = [Learner(params, config, tuned=tuned, device=device) for tuned in (False, True)]
    hu, heart = (np.asarray(batch["train"][name])[:, 0] for name in ("hu", "heart"))
    half = len(hu) // 2
    placed = [[each.place(hu[part], heart[part]) for part in (slice(half), slice(half, None))] for each in theirs]
    ours = program(*given)[1]
    with FlopCounterMode(display=False) as counter:
        first = theirs[0].step(*placed[0])
    for name in ("loss", "cycle", "judge_free", "judge_calcified"):
        agree(f"first {name}", ours[name], first[name], 1e-3)
    works = [finish(lambda one=one, where=where: one.step(*where)) for one, where in zip(theirs, placed)]
    case = f"2 x {half} slices {hu.shape[1]} x {hu.shape[2]}, width {config.generator.model.width}"
    return Case(work, case, ready(program, *given), *works, program, took, flops=counter.get_total_flops())


def begun(variant):
    """(config, (state at the beginning, batch, key)) of a variant."""
    config = cyclegan.get_config(variant)
    with config.unlocked():
        config.pool, config.discriminator.warmup = 0, 0
        config.view.update({"noise": False, "flips": False, "degrees": 0.0})
        config.streams.train.size = (1, config.view.size, config.view.size)
    task = build(config)
    example = example_batch(streams_of(config.streams, task))
    rng, shape = np.random.default_rng(0), example["train"]["hu"].shape
    hu, label, heart = rng.normal(40, 60, shape), np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    heart[..., shape[2] // 6 : -(shape[2] // 5), shape[3] // 5 : -(shape[3] // 6)] = 1
    hu[: len(hu) // 2, :, shape[2] // 2 :][..., :6, shape[3] // 2 :][..., :8] += 400
    batch = {"train": {"hu": jnp.asarray(hu.round(), jnp.float32), "label": jnp.asarray(label), "heart": jnp.asarray(heart)}}
    return config, (jax.jit(lambda key: task.init(key, example, {}))(jax.random.key(0)), batch, jax.random.key(2))


class Layer(NamedTuple):
    """One layer on `BATCH` slices: a convolution, or batch normalisation and a rectifier."""

    form: str
    size: int
    inputs: int
    outputs: int
    side: int

    @property
    def key(self) -> dict:
        """The columns that tell a row from the others."""
        return {"work": "layers", "case": f"{self.form} {self.size}x{self.size} {self.inputs}->{self.outputs} @{self.side}"}

    def measure(self, rounds: int) -> dict:
        """The other columns of the row; the program ends where the sides differ."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=(BATCH, self.side, self.side, self.inputs)).astype(np.float32)
        kernel = rng.normal(size=(self.size, self.size, self.inputs, self.outputs)).astype(np.float32)
        kernel /= np.sqrt(self.size**2 * self.inputs)
        works = {}
        for name, function in (("ours", self.ours), ("native", self.native)):
            works |= of_jax(name, function, x, kernel, slopes=name == "ours" or self.form != "up")
        works |= of_torch(self.torch, x, kernel)
        for mine, other in (("ours", "torch"), ("slope_ours", "slope_torch")):
            for one, two in zip(works[mine](), works[other]()):
                agree(f"{self.key['case']}, {mine}", one, two, 1e-3)
        cpu = {name: [] for name in works}
        take_turns({name: noted(work, cpu[name]) for name, work in works.items()}, rounds + 1)
        least = {f"{name}_s": min(seconds[1:]) for name, seconds in cpu.items()}
        ratios = {"ratio_torch": least["torch_s"] / least["ours_s"], "ratio_slope": least["slope_torch_s"] / least["slope_ours_s"]}
        return least | ratios | {"rounds": rounds}

    def ours(self, x, kernel):
        """As the networks have it."""
        if self.form == "norm":
            variables = {"params": {"scale": kernel[0, 0, 0], "bias": kernel[0, 0, 1]}}
            return nn.relu(Normalisation().apply(variables, x, True, mutable=["batch_stats"])[0])
        if self.form == "up":
            return conv2d.doubled(x, kernel)
        x = self.padded(x)
        return conv.convolution(x, kernel, stride=2) if self.stride == 2 else conv2d.valid(x, kernel)

    def native(self, x, kernel):
        """As XLA has it."""
        if self.form == "norm":
            return nn.relu((x - x.mean((0, 1, 2))) * jax.lax.rsqrt(x.var((0, 1, 2)) + 1e-5) * kernel[0, 0, 0] + kernel[0, 0, 1])
        if self.form == "up":
            axes = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                x, kernel[::-1, ::-1], (1, 1), ((1, 2), (1, 2)), lhs_dilation=(2, 2), dimension_numbers=axes
            )
        return conv.convolution(self.padded(x), kernel, stride=self.stride)

    def torch(self, x, kernel):
        """As PyTorch has it: [b, c, y, x] and [f, c, k, k], of a transposed one [c, f, k, k]."""
        if self.form == "norm":
            return functional.relu(functional.batch_norm(x, None, None, kernel[:, 0, 0, 0], kernel[:, 1, 0, 0], True))
        if self.form == "up":
            return functional.conv_transpose2d(x, kernel.transpose(0, 1), None, 2, 1, 1)
        pad = PADS.get(self.form, self.size // 2)
        x = x if self.form in PADS else functional.pad(x, (pad,) * 4, "reflect")
        return functional.conv2d(x, kernel, None, self.stride, pad if self.form in PADS else 0)

    def padded(self, x):
        """As the layer pads."""
        around = (PADS.get(self.form, self.size // 2),) * 2
        return jnp.pad(x, ((0, 0), around, around, (0, 0)), mode="constant" if self.form in PADS else "reflect")

    @property
    def stride(self) -> int:
        """Of a convolution."""
        return 2 if self.form in ("down", "judge") else 1


def of_jax(name, function: Callable, x, kernel, *, slopes: bool) -> dict:
    """{"name": forward, "slope_name": with gradients}, warm callables that return the results channels last."""

    def both(x, kernel):
        value, pull = jax.vjp(function, x, kernel)
        return value, *pull(value)

    works = {name: lambda x, kernel: (function(x, kernel),)} | ({f"slope_{name}": both} if slopes else {})
    return {key: ready(compiled(work, x, kernel)[0], x, kernel) for key, work in works.items()}


def of_torch(function, x, kernel) -> dict:
    """The same of PyTorch, in its own order of axes in memory."""
    x, kernel = (torch.tensor(np.ascontiguousarray(a.transpose(axes))) for a, axes in ((x, (0, 3, 1, 2)), (kernel, (3, 2, 0, 1))))

    def forward():
        with torch.no_grad():
            return (function(x, kernel).permute(0, 2, 3, 1),)

    def both():
        given = [a.detach().requires_grad_() for a in (x, kernel)]
        value = function(*given)
        to_x, to_kernel = torch.autograd.grad(value, given, value.detach())
        return value.permute(0, 2, 3, 1), to_x.permute(0, 2, 3, 1), to_kernel.permute(2, 3, 1, 0)

    return {"torch": forward, "slope_torch": both}
