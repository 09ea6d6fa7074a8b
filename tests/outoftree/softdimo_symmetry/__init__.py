"""Components from outside of softdimo's repository."""
