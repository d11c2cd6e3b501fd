"""What the five scripts on top are built of, one subject a file. The README lists the files from the bottom up."""
