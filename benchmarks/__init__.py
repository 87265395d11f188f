"""Where the project's published figures come from; each file is rerun by one `make` target."""
