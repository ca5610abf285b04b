"""One experiment a file: its command, run time and result at the top, a `RECIPE` below."""
