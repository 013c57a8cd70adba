"""The subcommands of `elip`, one file per group; what they run is imported when they run."""
