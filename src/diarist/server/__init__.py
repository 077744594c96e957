"""HTTP over the engine: the original's routes, the OpenAI audio API, Hugging Face clients. `app.create_app` is the way in."""
