"""Training data and prompts: records, chats, templates and token ids."""
