"""A coreset in the formats of others, with its images byte for byte."""
