"""Published CLIP and SigLIP models as bundles: one format of publication a file; trains and serves nothing."""
