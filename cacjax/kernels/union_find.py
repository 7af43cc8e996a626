"""Union-find: dense numbers for the components of a graph whose nodes stand in order, one variant for each kind of machine.

parent: an earlier node that each node is known to belong to, or itself. edges: each the other end of an edge of every node (itself
where there is none). n: nodes in use.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int32

from cacjax.kernels.bits import running_sum

Nodes = Int32[Array, " capacity"]
Count = Int32[Array, ""]


def number(parent: Nodes, edges: tuple[Nodes, ...], n: Count) -> tuple[Nodes, Count]:
    """Numbers of components from 1, by their first node (0 beyond n), and how many there are."""
    return lax.platform_dependent(parent, edges, n, cpu=number_serial, default=number_parallel)


def number_serial(parent: Nodes, edges: tuple[Nodes, ...], n: Count) -> tuple[Nodes, Count]:
    """`number` on one thread in tight scalar loops (CPU): follow parents, hang the larger root under the smaller."""

    def get(values, at):
        return lax.dynamic_index_in_dim(values, at, keepdims=False)

    def put(values, at, value):
        return lax.dynamic_update_index_in_dim(values, value, at, 0)

    def root(parent, node):
        return lax.while_loop(lambda i: get(parent, i) != i, lambda i: get(parent, i), node)

    def join(node, parent):
        top = root(parent, node)
        for slot in edges:
            other = get(slot, node)
            its = root(parent, jnp.where(other == node, top, other))
            low = jnp.minimum(top, its)
            parent, top = put(put(parent, jnp.maximum(top, its), low), other, low), low
        return put(parent, node, top)

    def name(node, state):
        count, number = state
        above = get(parent, node)
        count += above == node
        return count, put(number, node, jnp.where(above == node, count, get(number, above)))

    parent = lax.fori_loop(0, n, join, parent)
    # Parents are smaller than children, so one ascending pass finds every root before what hangs on it.
    count, number = lax.fori_loop(0, n, name, (jnp.int32(0), jnp.zeros_like(parent)))
    return number, count


def number_parallel(parent: Nodes, edges: tuple[Nodes, ...], n: Count) -> tuple[Nodes, Count]:
    """`number` in rounds (GPU, TPU): hook all edges at once by scatter-min, shorten all paths by pointer jumps, until nothing changes."""

    def sweep(state):
        parent, _ = state
        new, apart = parent, jnp.array(False)
        for slot in edges:
            across = parent[slot]
            apart |= jnp.any(parent != across)
            new = new.at[jnp.maximum(parent, across)].min(jnp.minimum(parent, across), mode="promise_in_bounds")
        for _ in range(3):
            new = new[new]
        return new, apart | jnp.any(new != parent)

    parent = lax.while_loop(lambda state: state[1], sweep, (parent, jnp.array(True)))[0]
    node = jnp.arange(parent.shape[0], dtype=jnp.int32)
    rank = running_sum(((parent == node) & (node < n)).astype(jnp.int32), most=1)
    return jnp.where(node < n, rank[parent], 0), rank[-1]
