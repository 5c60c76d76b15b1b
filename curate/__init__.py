"""Select, from web-scale image collections, the coreset worth pretraining on for your domain."""

__version__ = "0.2.0"
