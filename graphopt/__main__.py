"""``python -m graphopt``: the command line."""

from graphopt.cli.main import app

app(prog_name="graphopt")
