"""Back ends: packages of others that train and segment in a Python of their own, on images that are prepared here."""
