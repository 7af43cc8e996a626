"""The streams of a config: how they are cut, what a batch of them looks like, the loader."""

import jax
import jax.numpy as jnp

from cacjax.data import sampling
from cacjax.data.sampling import StreamSpec


def streams_of(streams, task) -> dict:
    """{name: (StreamSpec, count)} of `config.streams` or `config.validation`, cut as their task wants them."""

    def spec(stream):
        own = {key: value for key, value in stream.items() if key in StreamSpec._fields}
        return StreamSpec(splits=tuple(stream.split.split(",")), cut=task.cut(stream), **own), tuple(stream.count)

    return {name: spec(stream) for name, stream in streams.items()}


def example_batch(streams) -> dict:
    """Shapes of one batch: per stream "hu", "label" and "heart" where it carries them, [*count, ...] as `sampling.sample_shapes` says."""
    dtypes = {"hu": jnp.float32, "label": jnp.uint8, "heart": jnp.uint8}

    def shapes(spec, count):
        return {part: jax.ShapeDtypeStruct((*count, *shape), dtypes[part]) for part, shape in sampling.sample_shapes(spec).items()}

    return {name: shapes(*stream) for name, stream in streams.items()}


def batches_of(streams, records, config, step: int):
    """The loader of streams from {split: records}, at the position that follows from `step`."""
    from cacjax.data import loader  # brings in Grain, which a run that answers does without

    return loader.make_loader(
        records,
        streams,
        seed=config.seed,
        step=step,
        num_threads=config.data.loader.threads,
        num_workers=config.data.loader.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
