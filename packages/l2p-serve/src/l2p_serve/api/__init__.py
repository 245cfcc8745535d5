"""OpenAI's image endpoints over a painter; needs the extra l2p-serve[api]."""
