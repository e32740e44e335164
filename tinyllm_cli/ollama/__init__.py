"""How tinyllm speaks with Ollama; nothing here knows about caching."""
