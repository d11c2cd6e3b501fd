"""What the five scripts are built of, one subject a file. Imports point one way, see pyproject.toml."""
