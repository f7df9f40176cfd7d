"""Numbers of an update in fewer bits: codecs, and the payloads that they make."""
