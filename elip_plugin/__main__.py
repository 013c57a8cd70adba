"""`python -m elip_plugin`: the command `elip`, for torchrun."""

from elip_plugin.cli.main import main

main()
