"""``python -m foundry_ray.cli`` is the ``foundry`` command."""

from foundry_ray.cli import main

if __name__ == "__main__":
    main()
