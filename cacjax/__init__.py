"""cacjax: coronary artery calcium scoring in CT, in JAX/Flax."""

from cacjax import backend

backend.configure()

__version__ = "0.1.0"


def __getattr__(name):
    """Import `score` on first use: reading scans must not slow down `import cacjax`."""
    if name == "score":
        from cacjax.score import score

        return score
    raise AttributeError(f"module 'cacjax' has no attribute {name!r}")
