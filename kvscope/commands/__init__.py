"""A module for each command, of its name: `add_options` says what it takes, `run` does it. The table: kvscope.cli."""
