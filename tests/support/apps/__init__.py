"""Small web applications, in frameworks that users have; each is run by a server of its kind."""
