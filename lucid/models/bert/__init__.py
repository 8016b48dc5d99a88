"""BERT: configuration, backbone, masked language model."""
