"""An HTTP server that decodes with Medusa: OpenAI's and Anthropic's protocols over the engine."""
