"""Text encoders: prompts -> what teachers and tokenizers are conditioned on."""
