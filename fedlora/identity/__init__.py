"""Who is who in a federation, by certificate: names, certificates, and their files."""
