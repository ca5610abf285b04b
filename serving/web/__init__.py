"""The HTTP side of the server: the gateway with its JSON, and the page to search with."""
