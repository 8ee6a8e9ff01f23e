"""One module a command: `add_options` says what it takes, `run` does it. The table of all is in kvscope.cli."""
