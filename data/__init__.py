"""Image–text pairs in, model-ready batches out; knows no model."""
