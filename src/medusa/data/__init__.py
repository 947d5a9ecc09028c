"""Data from files and datasets: records, chats, chat templates and token ids."""
