"""Version 1 of the image retrieval interface; kept compatible."""
