"""The reward `imagereward_official` for softdimo."""
