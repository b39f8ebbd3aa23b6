"""Operating the pipeline: what is run around the four stages."""
