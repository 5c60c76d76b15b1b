"""Select, from web-scale image collections, the coreset worth pretraining on for your domain."""

import os

# kornia-rs would resize each image on all cores, of which every one has a reader already. It is
# asked once, when it first resizes; a process that has resized must not fork one that does
os.environ.setdefault("RAYON_NUM_THREADS", "1")

__version__ = "0.2.0"
