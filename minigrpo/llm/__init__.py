"""The same objectives on language models. Needs the extra `llm`; nothing is imported before a module is named."""
