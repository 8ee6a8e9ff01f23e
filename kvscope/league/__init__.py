"""The league: every policy at equal true bytes on the same prompts, one results file. See docs/league.md."""
