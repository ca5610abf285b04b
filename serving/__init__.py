"""Builds an index of image embeddings and answers queries from it; reaches the model only through its runtime."""
