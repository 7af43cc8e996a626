"""Values of runs by the group that each belongs to, such as its component: groups count from 1, slots that are not in use have 0."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Int32, Shaped

Group = Int32[Array, " capacity"]


def total(values: Shaped[Array, " capacity"], group: Group) -> Shaped[Array, " capacity"]:
    """Sums of values at the places `group`."""
    return jnp.zeros(values.shape, values.dtype).at[group].add(values)


def top(values: Shaped[Array, " capacity"], group: Group) -> Shaped[Array, " capacity"]:
    """Largest of the values at the places `group`, -inf where there are none."""
    return jnp.full(values.shape, -jnp.inf, values.dtype).at[group].max(values)


def spread(reduce, group: Group, values: Shaped[Array, " capacity"]) -> Shaped[Array, " capacity"]:
    """What `reduce` makes of the values of each group, back at every member."""
    group = jnp.where(group > 0, group - 1, values.shape[0] - 1)
    # Unused slots share the last place, which holds a component only if every slot is in use.
    return reduce(values, group)[group]


def first(group: Group) -> Group:
    """1 at the first run of each group in use, else 0. Group numbers must be dense in order of their first run."""
    return (group > jnp.pad(lax.cummax(group)[:-1], (1, 0))).astype(jnp.int32)


def parts(component: Group, z: Group) -> Group:
    """Groups of the runs of one component in one slice, numbered from 1; 0 where not in use."""
    order = jnp.argsort(component, stable=True)  # raster order remains within a component: z ascends
    sorted_component, sorted_z = component[order], z[order]
    new = (jnp.diff(sorted_component) != 0) | (jnp.diff(sorted_z) != 0)
    number = 1 + jnp.cumsum(jnp.pad(new, (1, 0)).astype(jnp.int32))
    group = jnp.zeros_like(component).at[order].set(number)
    # Unused slots sort first, so parts count from 2 or 1 on; numbers stay within the capacity because unused slots exist then.
    return jnp.where(component > 0, group - (sorted_component[0] == 0), 0)


def at(table: Shaped[Array, "lines rows"], row: Group):
    """The places of runs in every line of a table, line by line, for one scatter of numbers into the flat table, which on a CPU takes a
    fraction of the time of one of columns. All rows must lie in the table."""
    lines = table.shape[1] * np.arange(len(table), dtype=np.uint32)[:, None]
    return table.ravel().at[(lines + row.astype(jnp.uint32)).ravel()]
