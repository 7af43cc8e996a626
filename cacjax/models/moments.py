"""Domain-specific normalisation of a generator (ours, after Li et al. 2017, AdaBN, and Chang et al. 2019, DSBN).

A scale and a shift per channel behind every convolution of a subnet give the target's activations the mean and the variance of the
source's; the kernels stay shared. Being affine they fold into kernels and biases, so a detector carries no trace of them.
A generator's parameters are {subnet: {layer: {"kernel", "bias"}}}; an affine is {subnet: {layer: (scale [f], shift [f])}}.
"""

import jax
import jax.numpy as jnp

from cacjax.models.conv import convolution
from cacjax.models.dilated import elu

EPSILON = 1e-6  # of a variance


def identity(generator):
    """The affine that changes nothing."""
    return _by_layer(generator, lambda layer: (jnp.ones_like(layer["bias"]), jnp.zeros_like(layer["bias"])))


def fold(generator, affine):
    """A generator that computes scale * convolution + shift where `generator` computes the convolution."""

    def folded(layer, scale_and_shift):
        scale, shift = scale_and_shift
        return {"kernel": layer["kernel"] * scale, "bias": layer["bias"] * scale + shift}

    return {name: {key: folded(layer, affine[name][key]) for key, layer in subnet.items()} for name, subnet in generator.items()}


def match(generator, dilations, source, target):
    """The affine that matches the moments of both domains, layer after layer.

    source, target: network inputs [b, planes, h, w, slab]; dilations: those of the subnets' 3x3 layers.
    """
    return {
        f"subnets_{plane}": _match_subnet(generator[f"subnets_{plane}"], dilations, source[:, plane], target[:, plane])
        for plane in range(source.shape[1])
    }


def _match_subnet(subnet, dilations, source, target):
    affine = {}
    for i, dilation in enumerate((*dilations, 1)):
        layer = subnet[f"Conv_{i}"]
        source, target = (convolution(x, layer["kernel"], dilation) + layer["bias"] for x in (source, target))
        (mean, variance), (target_mean, target_variance) = (_moments(x) for x in (source, target))
        scale = jnp.sqrt((variance + EPSILON) / (target_variance + EPSILON))
        affine[f"Conv_{i}"] = scale, mean - target_mean * scale
        source, target = elu(source), elu(target * scale + affine[f"Conv_{i}"][1])
    return affine


def _moments(x):
    return x.mean((0, 1, 2)), x.var((0, 1, 2))


def _by_layer(generator, make):
    return jax.tree.map(make, generator, is_leaf=lambda node: isinstance(node, dict) and "kernel" in node)
