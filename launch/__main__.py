"""`python -m launch`: the same command as `gradrank`, without installing."""

from launch.cli import main

main()
