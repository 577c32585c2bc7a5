"""Text to ids and back: tokenizer, chat templates, ways to put a question."""
