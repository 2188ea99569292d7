"""Hub: access to the Hugging Face Hub, with retries."""
