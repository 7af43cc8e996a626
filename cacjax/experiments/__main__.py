"""`python -m cacjax.experiments`."""

from cacjax.experiments.run import main

if __name__ == "__main__":
    main()
