"""The two-tower model, its training and its evaluation; knows no index and no server."""
