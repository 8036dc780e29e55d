"""A service over HTTP: libraries of pictures searched by text, by picture and by both, with a page at its root."""
