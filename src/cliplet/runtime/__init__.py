"""A model folder in use: pictures and sentences to arrays. Only the torch engine imports torch, when asked for."""
