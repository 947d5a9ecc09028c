"""An HTTP server that decodes with Medusa: OpenAI's protocol over the engine."""
