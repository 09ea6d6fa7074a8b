"""The reward `hpsv2_official` for softdimo."""
