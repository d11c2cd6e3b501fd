"""What the five scripts are built of, one subject a file. Imports point one way, see pyproject.toml."""

import os

# Hides TensorFlow's lines about missing GPUs, not its exceptions. TensorFlow reads it when it is imported:
# later, because every module that imports it imports this package first.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
