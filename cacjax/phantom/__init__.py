"""A digital thorax with known coronary calcium: anatomy, acquisition and cohorts of synthetic CT scans."""

_EXPORTS = ("Phantom", "make_pair", "make_scan")
__all__ = ["Phantom", "make_pair", "make_scan"]


def __getattr__(name: str):
    """Load the scanner half only when it is asked for, so that `import cacjax.phantom` stays cheap."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(_EXPORTS)}")
    from cacjax.phantom import cohort

    return getattr(cohort, name)
